"""WIDER FACE on disk: the folder layout and both formats of label file.

    root/{train,val}/images/<event>/*.jpg
    root/{train,val}/label.txt                                   RetinaFace's labels
    root/wider_face_split/wider_face_{train,val}_bbx_gt.txt      the official labels

`root` is data/widerface unless a script is told otherwise.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray

from utils.boxes import as_boxes, xywh_to_xyxy, xyxy_to_xywh

LANDMARKS = 5
RETINAFACE_COLUMNS = (4, 4 + 3 * LANDMARKS + 1)  # x y w h; or with 5 x (x y flag) and a score
OFFICIAL_COLUMNS = 10  # x y w h blur expression illumination invalid occlusion pose
OFFICIAL_INVALID = 7  # column of the flag `invalid`
ABSENT = -1.0  # both coordinates of a landmark that nobody annotated

HOW_TO_GET = (
    "download WIDER FACE (images and face annotations) from http://shuoyang1213.me/WIDERFACE/ "
    "and run python data/prepare_widerface.py"
)

LARGEST = 100_000  # px; a larger box is no box, and its kernel would exhaust the memory
LARGEST_FILE = 2**29  # bytes of a label file

SPLITS = ("train", "val")

Line = tuple[int, str]


class LabelError(ValueError):
    """A label file says what cannot be right; the message is one line.

    That of `read_labels` starts `FILE:LINE: `.
    """


@dataclass(frozen=True)
class LabelledPhoto:
    """One photo of a label file.

    path: relative to the images folder, with `/`, as it stands in the file.
    boxes: float64 `[N, 4]`, `(x1, y1, x2, y2)` in pixels, in the order of the file. Boxes of size
        zero are among them; `utils.boxes.usable` tells them apart.
    landmarks: float64 `[N, 5, 2]`, `(x, y)` in pixels, NaN where absent.
    invalid: bool `[N]`, the official flag `invalid`; False where the format has none.
    """

    path: str
    boxes: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    invalid: NDArray[np.bool_]


def find_labels(root: Path, split: str) -> Path:
    """Return the label file of `split` ("train" or "val"), RetinaFace's before the official one.

    Raises FileNotFoundError, with what to do about it, where neither is there.
    """
    candidates = [
        root / split / "label.txt",
        root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt",
    ]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"no labels for '{split}': neither {candidates[0]} nor {candidates[1]} exists; {HOW_TO_GET}"
    )


def photo_path(images_dir: Path, relative: str) -> Path:
    """Return `images_dir / relative`.

    Raises LabelError, naming the folder, where that place is not inside `images_dir` once symbolic
    links are resolved.
    """
    fault = path_fault(relative)
    path = images_dir / relative
    # Not Path.resolve: it raises RuntimeError where a link leads to itself.
    if fault is None and not Path(os.path.realpath(path)).is_relative_to(images_dir.resolve()):
        fault = "it leads out of the images folder"
    if fault is not None:
        raise LabelError(f"{images_dir}: photo path {relative!r} refused: {fault}")
    return path


def read_labels(path: Path) -> list[LabelledPhoto]:
    """Read a label file of either format, in the order of the file.

    RetinaFace's format (first non-blank line starts with `#`): `# path`, then a row a face,
    `x y w h` or those four, five landmarks as `x y flag` and a score. The official format: path,
    count, then a row a face, `x y w h blur expression illumination invalid occlusion pose`; a
    count of 0 may be followed by one row of zeros.

    Raises LabelError, with file and line number, for whatever does not fit, and OSError where the
    file cannot be read. Widths and heights of zero do occur in WIDER FACE and are kept.
    """
    lines = label_lines(path)
    if not lines:
        raise LabelError(f"{path}:1: the file is empty; expected photo paths and face boxes")
    is_retinaface = lines[0][1].startswith("#")
    photos = _retinaface_photos(path, lines) if is_retinaface else _official_photos(path, lines)
    first_seen: dict[PurePosixPath, int] = {}
    labelled = []
    for number, photo in photos:
        key = PurePosixPath(photo.path)
        if key in first_seen:
            raise LabelError(
                f"{path}:{number}: photo {photo.path!r} occurs a second time "
                f"(first in line {first_seen[key]}); expected every photo once"
            )
        first_seen[key] = number
        labelled.append(photo)
    return labelled


def write_labels(path: Path, photos: Iterable[LabelledPhoto]) -> None:
    """Write boxes in RetinaFace's format, `# path` and rows `x y w h`; complete or not at all."""
    lines = []
    for photo in photos:
        lines.append(f"# {photo.path}")
        rows = xyxy_to_xywh(photo.boxes).tolist()
        lines += [" ".join(f"{value:.12g}" for value in row) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def label_bytes(path: Path) -> bytes:
    """Read a label file. Raises LabelError for one above 512 MiB, OSError."""
    with path.open("rb") as file:
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise LabelError(f"{path}: larger than {LARGEST_FILE >> 20} MiB; split the label file")
    return data


def label_lines(path: Path) -> list[Line]:
    """Non-blank lines, stripped, with their numbers from 1. Tolerates a byte order mark.

    Raises LabelError for what is not UTF-8, and as `label_bytes` does.
    """
    lines = []
    for number, raw in enumerate(label_bytes(path).splitlines(), start=1):
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise LabelError(f"{path}:{number}: not UTF-8 text; expected a label file") from None
        if text:
            lines.append((number, text))
    return lines


def _retinaface_photos(path: Path, lines: list[Line]) -> Iterator[tuple[int, LabelledPhoto]]:
    header: Line | None = None
    rows: list[list[float]] = []
    for number, text in lines:
        if text.startswith("#"):
            if header is not None:
                yield header[0], _labelled(header[1], rows)
            header, rows = (number, _checked_path(path, number, text[1:].strip())), []
        else:
            rows.append(_row(path, number, text, RETINAFACE_COLUMNS))
    if header is not None:
        yield header[0], _labelled(header[1], rows)


def _official_photos(path: Path, lines: list[Line]) -> Iterator[tuple[int, LabelledPhoto]]:
    position = 0
    while position < len(lines):
        start, text = lines[position]
        if _is_row(text):
            raise LabelError(
                f"{path}:{start}: a face row where a photo path was expected; "
                "the count above does not match its rows"
            )
        relative = _checked_path(path, start, text)
        number, text = lines[position + 1] if position + 1 < len(lines) else (start, "")
        # isdecimal alone would take digits of other scripts and numbers that int() refuses.
        if not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise LabelError(
                f"{path}:{number}: expected the number of faces of {relative!r}, got {text[:60]!r}"
            )
        count, position = int(text), position + 2
        if position + count > len(lines):
            raise LabelError(
                f"{path}:{lines[-1][0]}: the file ends after {len(lines) - position} of the "
                f"{count} face rows of {relative!r}"
            )
        end = position + count
        rows = [_row(path, *line, (OFFICIAL_COLUMNS,)) for line in lines[position:end]]
        position = end
        if count == 0 and position < len(lines) and _is_zero_row(lines[position][1]):
            position += 1
        yield start, _labelled(relative, rows, official=True)


def _row(path: Path, number: int, text: str, columns: tuple[int, ...]) -> list[float]:
    """Parse and check one face row; `columns` are the lengths that the format knows."""
    wanted = " or ".join(str(column) for column in columns)
    fields = text.split()
    if len(fields) not in columns:
        raise LabelError(
            f"{path}:{number}: expected {wanted} numbers in a face row, got {len(fields)} fields"
        )
    try:
        row = [float(field) for field in fields]
    except ValueError:
        raise LabelError(
            f"{path}:{number}: expected {wanted} numbers in a face row, got {text[:60]!r}"
        ) from None
    fault = box_fault(row[:4])
    if fault is None and not all(map(math.isfinite, row)):
        fault = "expected finite numbers"
    if fault is not None:
        raise LabelError(f"{path}:{number}: {fault}, got {text[:60]!r}")
    return row


def box_fault(box: Sequence[float]) -> str | None:
    """Say what is wrong with a box `x y w h` in pixels; None where nothing is."""
    x, y, w, h = box
    if not all(map(math.isfinite, (x, y, w, h, x + w, y + h))):
        return "expected finite numbers"
    if w < 0 or h < 0:
        return "expected a width and a height of 0 or more"
    if max(map(abs, box)) > LARGEST:
        return f"expected a box within {LARGEST} px"
    return None


def _is_row(text: str) -> bool:
    fields = text.split()
    try:
        return len(fields) == OFFICIAL_COLUMNS and all(map(math.isfinite, map(float, fields)))
    except ValueError:
        return False


def _is_zero_row(text: str) -> bool:
    return _is_row(text) and not any(float(field) for field in text.split())


def _labelled(relative: str, rows: list[list[float]], official: bool = False) -> LabelledPhoto:
    landmarks = np.full((len(rows), LANDMARKS, 2), np.nan)
    invalid = np.zeros(len(rows), dtype=np.bool_)
    for index, row in enumerate(rows):
        if official:
            invalid[index] = row[OFFICIAL_INVALID] != 0
        elif len(row) > 4:
            points = np.array(row[4 : 4 + 3 * LANDMARKS]).reshape(LANDMARKS, 3)[:, :2]
            landmarks[index] = np.where((points == ABSENT).all(axis=1)[:, None], np.nan, points)
    boxes = xywh_to_xyxy(as_boxes([row[:4] for row in rows]))
    return LabelledPhoto(relative, boxes, landmarks, invalid)


def _checked_path(path: Path, number: int, relative: str) -> str:
    fault = path_fault(relative)
    if fault is not None:
        raise LabelError(
            f"{path}:{number}: photo path {relative[:200]!r} refused: {fault}; "
            "expected a path inside the images folder such as event/photo.jpg"
        )
    return relative


def path_fault(relative: str) -> str | None:
    """Say what is wrong with a photo path, on any system; None where nothing is."""
    if not relative or not PurePosixPath(relative).parts:
        return "it is empty"
    windows = PureWindowsPath(relative)
    if relative.startswith("/") or windows.drive or windows.root:
        return "it is absolute"
    if "\\" in relative:
        return "it contains a backslash"
    if ".." in PurePosixPath(relative).parts:
        return "it contains '..'"
    if not relative.isprintable():
        return "it contains control characters"
    return None
