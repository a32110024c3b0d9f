"""YOLO's label format: a folder of text files, one for each photo."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from utils.boxes import as_boxes, xywh_to_xyxy
from utils.photo_labels import Labels, PhotoLabels, chosen_classes, class_note
from utils.widerface import LabelError, label_lines

CLASS_NAMES = "classes.txt"  # annotation tools leave it among YOLO's files
ROUNDING = 1e-3  # by which a fraction may miss the range from 0 to 1


def read_yolo(folder: Path, photos: Iterable[str], classes: Sequence[str] = ()) -> Labels:
    """Read the labels of `photos`, paths relative to the folder of photos, with `/`.

    Those of `e/a.jpg` stand in `folder/e/a.txt`, a row `class x y w h` for each box: x y the
    centre, all four fractions of the photo; a confidence may follow. An empty file says "no face",
    a missing one leaves the photo unlisted, one without a photo is noted. `classes`: the class
    numbers that are hidden, all where none is named.

    Raises LabelError, which names file and line, and OSError.
    """
    owners: dict[str, list[str]] = {}
    for photo in photos:
        owners.setdefault(_without_suffix(photo), []).append(photo)
    files = _text_files(folder)
    faults: dict[str, str] = {}
    strays: list[Path] = []
    rows: dict[str, list[tuple[int, list[float]]]] = {}
    for relative in files:
        path = folder / relative
        mine = owners.get(_without_suffix(relative), [])
        if len(mine) == 1:
            if mine[0] in rows:
                raise LabelError(f"{path}: a second label file for the photo {mine[0]!r}")
            rows[mine[0]] = [_yolo_row(path, *line) for line in label_lines(path)]
        elif mine:
            faults |= {
                photo: f"the label file {path} would belong to {len(mine)} photos, "
                f"{' and '.join(map(repr, mine[:2]))}; give them different names"
                for photo in mine
            }
        elif path.name != CLASS_NAMES:
            strays.append(path)
    if not rows and not faults:
        raise LabelError(f"{folder}: no label file in this folder; expected e/a.txt for e/a.jpg")

    counts = Counter(number for found in rows.values() for number, _ in found)
    names = {number: str(number) for number in sorted(counts)}
    chosen = chosen_classes(folder, classes, names)
    labelled = []
    for photo, found in rows.items():
        centred = as_boxes([box for number, box in found if number in chosen])
        starts = centred[:, :2] - centred[:, 2:] / 2
        boxes = xywh_to_xyxy(np.concatenate([starts, centred[:, 2:]], axis=1))
        labelled.append(PhotoLabels(photo, boxes, is_relative=True))
    notes = [class_note(folder, counts, chosen, names)]
    if strays:
        notes.append(f"{folder}: {len(strays)} .txt files belong to no photo, first {strays[0]}")
    return Labels(labelled, faults, notes)


def _text_files(folder: Path) -> list[str]:
    """The .txt files below `folder`, relative, sorted. Links to folders are not followed."""

    def refuse(error: OSError) -> None:
        raise error

    found = []
    for place, _, names in os.walk(folder, onerror=refuse):
        found += [Path(place, name) for name in names if Path(name).suffix.lower() == ".txt"]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _without_suffix(relative: str) -> str:
    return PurePosixPath(relative).with_suffix("").as_posix()


def _yolo_row(path: Path, number: int, text: str) -> tuple[int, list[float]]:
    """Class and centre box; the confidence behind them, if there is one, is left out."""
    fields = text.split()
    try:
        label, *box = [float(value) for value in fields]
    except ValueError:
        label, box = -1.0, []
    if len(box) not in (4, 5) or not (label.is_integer() and 0 <= label < 1e9):
        raise LabelError(
            f"{path}:{number}: expected a class number and x y w h (or those and a confidence), "
            f"got {text[:60]!r}"
        )
    # NaN fails the comparison as well.
    if not all(-ROUNDING <= value <= 1 + ROUNDING for value in box) or min(box[2:4]) < 0:
        raise LabelError(
            f"{path}:{number}: expected x y w h as fractions of the photo from 0 to 1, "
            f"got {text[:60]!r}"
        )
    return int(label), box[:4]
