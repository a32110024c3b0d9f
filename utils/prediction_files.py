"""Detections as text, in the format of the WIDER FACE evaluation tools: a file for each photo.

    folder/<event>/<name>.txt

    <name>                  the photo, without its suffix
    2                       the number of detections
    449 330 122 149 0.987   x y w h score, a row for each
    17.25 8 30 41.5 0.112

A photo without a detection has the number 0 and no row.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from utils.boxes import Boxes, as_boxes, xywh_to_xyxy, xyxy_to_xywh

Detections = tuple[Boxes, NDArray[np.float64]]
"""Faces found in one photo: boxes [N, 4] (x1, y1, x2, y2) in pixels, and scores [N]."""

COLUMNS = 5  # x y w h score


class PredictionError(Exception):
    """Prediction files that cannot be used; the message is one line and names the place."""


def require_unused(folder: Path) -> None:
    """Raise `PredictionError` where `write_predictions` would remove something."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise PredictionError(f"{folder}: not an empty folder; name a new one for the predictions")


def write_predictions(folder: Path, predictions: Mapping[str, Detections]) -> None:
    """Write the detections of each photo, `event/name.jpg`, to `folder/event/name.txt`.

    Replaces the folder, which appears complete or not at all. Coordinates are rounded to a
    thousandth of a pixel, scores to nine digits, which a float32 survives.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(temporary, ignore_errors=True)
    for path, (boxes, scores) in predictions.items():
        file = prediction_file(temporary, path)
        rows = [
            " ".join(f"{value:.3f}" for value in box) + f" {score:.9g}"
            for box, score in zip(xyxy_to_xywh(boxes).tolist(), scores.tolist(), strict=True)
        ]
        file.parent.mkdir(parents=True, exist_ok=True)
        text = "\n".join([file.stem, str(len(rows)), *rows]) + "\n"
        file.write_text(text, encoding="utf-8", newline="\n")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)


def prediction_file(folder: Path, photo: str) -> Path:
    """The file of a photo, given by its path `event/name.jpg`."""
    return folder / PurePosixPath(photo).with_suffix(".txt")


def read_predictions(folder: Path, photos: Iterable[str]) -> dict[str, Detections]:
    """Read the files of `photos`, the paths `event/name.jpg`; those without a file are left out.

    Other files in the folder are not looked at. Raises `PredictionError`, with file and line,
    for whatever does not fit the format, and where no photo has a file.
    """
    photos = list(photos)
    files = {photo: prediction_file(folder, photo) for photo in photos}
    found = {photo: _read(file) for photo, file in files.items() if file.is_file()}
    if photos and not found:
        raise PredictionError(
            f"{folder}: no predictions for any of the {len(photos)} photos; "
            f"expected files such as {prediction_file(folder, photos[0])}"
        )
    return found


def _read(file: Path) -> Detections:
    try:
        lines = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError:
        raise PredictionError(f"{file}: not UTF-8 text; expected a prediction file") from None
    if len(lines) < 2:
        raise PredictionError(
            f"{file}:{len(lines) + 1}: the file ends early; expected the photo's name, "
            "the number of detections and a row `x y w h score` for each"
        )
    # Some tools write the whole path of the photo.
    named = lines[0].strip().replace("\\", "/").rsplit("/", 1)[-1]
    if file.stem not in (named, PurePosixPath(named).stem):
        raise PredictionError(
            f"{file}:1: predictions of {lines[0].strip()[:60]!r} in the file of {file.stem}"
        )
    count = lines[1].strip()
    # isdecimal alone would take digits of other scripts and numbers that int() refuses.
    if not (count.isascii() and count.isdecimal() and len(count) < 10):
        raise PredictionError(f"{file}:2: expected the number of detections, got {count[:60]!r}")
    rows = [_row(file, number, text) for number, text in enumerate(lines[2:], start=3)]
    if len(rows) != int(count):
        raise PredictionError(
            f"{file}:2: says {int(count)} detections, but {len(rows)} rows follow"
        )
    table = np.array(rows, dtype=np.float64).reshape(-1, COLUMNS)
    return xywh_to_xyxy(as_boxes(table[:, :4])), table[:, 4]


def _row(file: Path, number: int, text: str) -> list[float]:
    try:
        row = [float(field) for field in text.split()]
    except ValueError:
        row = []
    if len(row) != COLUMNS or not all(map(math.isfinite, row)):
        raise PredictionError(
            f"{file}:{number}: expected five finite numbers, x y w h score, got {text[:60]!r}"
        )
    if row[2] < 0 or row[3] < 0:
        raise PredictionError(
            f"{file}:{number}: expected a width and a height of 0 or more, "
            f"got {row[2]:g} x {row[3]:g}"
        )
    return row
