"""Face boxes from label files of every kind that is read.

    a folder of .txt files     YOLO: a file for each photo, with rows `class x y w h`, x y the
                               centre, as fractions of the photo; perhaps a confidence behind them
    a file of JSON             COCO: lists `images`, `annotations`, `categories`; `bbox` in pixels
    any other file             WIDER FACE's or RetinaFace's text (`utils.widerface`)

All boxes hold for the upright photo, as its EXIF orientation turns it. What does not fit is refused
in one line: a box that was not understood would be a face that stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from utils.coco import read_coco
from utils.photo_labels import Labels, PhotoLabels
from utils.widerface import LabelError, read_labels
from utils.yolo import read_yolo


def read_label_source(path: Path, photos: Iterable[str], classes: Sequence[str] = ()) -> Labels:
    """Read a label file of any kind, or YOLO's folder.

    `photos`: those of the folder that is anonymised, relative to it, with `/`; YOLO's files are
    paired with them. `classes`: which COCO categories, by name or id, or YOLO class numbers are
    hidden; all where none is named.

    Raises LabelError, which names the file and the line, or in JSON the entry's id or index, and
    OSError where something cannot be read.
    """
    path.stat()  # raises where nothing is there
    if path.is_dir():
        return read_yolo(path, photos, classes)
    if not path.is_file():  # reading a pipe twice would lose what was read first
        raise LabelError(f"{path}: neither a file nor a folder; expected label files")
    if path.suffix.lower() == ".json" or _begins_like_json(path):
        return read_coco(path, classes)
    if classes:
        raise LabelError(f"{path}: label files of this kind have no classes to choose from")
    return Labels([PhotoLabels(photo.path, photo.boxes) for photo in read_labels(path)])


def _begins_like_json(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
