"""COCO's label format: JSON with lists `images`, `annotations` and `categories`."""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from utils.boxes import as_boxes, xywh_to_xyxy
from utils.photo_labels import Labels, PhotoLabels, chosen_classes, class_note
from utils.widerface import LabelError, box_fault, label_bytes, path_fault

_LISTS = {"images": "image", "annotations": "annotation", "categories": "category"}


def read_coco(path: Path, classes: Sequence[str] = ()) -> Labels:
    """Read a file; `classes`: categories to hide, by name or id, all where none is named.

    All annotations count, `iscrowd` too, and only their `bbox`, x y w h in pixels, is looked at.
    Raises LabelError, which names the line or the entry's id or index, and OSError.
    """
    document = _parsed(path)
    names: dict[Any, str] = {}
    for where, item in _items(path, document, "categories"):
        key, name = _field(where, item, "id", (int, str)), _field(where, item, "name", (str,))
        if key in names:
            raise LabelError(f"{where}: a second category with this id")
        if not name.isprintable():
            raise LabelError(f"{where}: expected a name without control characters")
        names[key] = name
    chosen = chosen_classes(path, classes, names)

    images: dict[Any, tuple[str, tuple[float, float] | None]] = {}
    rows: dict[Any, list[list[float]]] = {}
    paths: set[str] = set()
    for where, item in _items(path, document, "images"):
        key, name = _field(where, item, "id", (int, str)), _field(where, item, "file_name", (str,))
        fault = path_fault(name)
        if fault is not None:
            raise LabelError(f"{where}: file_name {reprlib.repr(name)} refused: {fault}")
        photo = PurePosixPath(name).as_posix()
        if key in images or photo in paths:
            raise LabelError(f"{where}: this id or this file_name occurs a second time")
        images[key], rows[key] = (photo, _size(where, item)), []
        paths.add(photo)

    counts: Counter[Any] = Counter()
    for where, item in _items(path, document, "annotations"):
        image = _field(where, item, "image_id", (int, str))
        category = _field(where, item, "category_id", (int, str))
        for kind, key, known in (("image", image, images), ("category", category, names)):
            if key not in known:
                raise LabelError(f"{where}: there is no {kind} {reprlib.repr(key)}")
        row = _bbox(where, item, images[image][1])
        counts[category] += 1
        if category in chosen:
            rows[image].append(row)
    labelled = [
        PhotoLabels(photo, xywh_to_xyxy(as_boxes(rows[key])), size)
        for key, (photo, size) in images.items()
    ]
    return Labels(labelled, notes=[class_note(path, counts, chosen, names)])


def _parsed(path: Path) -> dict[str, Any]:
    """Parse JSON; the outlines of objects are dropped on the way, for they are the most of it."""

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        item = dict(pairs)
        if len(item) < len(pairs):  # the last one would win, and the faces of the others stay
            raise LabelError(
                f"{path}: an object has one of its keys twice, its id is "
                f"{reprlib.repr(item.get('id'))}: {reprlib.repr([key for key, _ in pairs])}"
            )
        item.pop("segmentation", None)
        return item

    data = label_bytes(path)
    try:
        document = json.loads(data.decode("utf-8-sig"), object_pairs_hook=checked)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LabelError(f"{path}:{line}: not UTF-8 text; expected COCO's JSON") from None
    except json.JSONDecodeError as error:
        raise LabelError(f"{path}:{error.lineno}: broken JSON: {error.msg}") from None
    except LabelError:
        raise
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; [[[[...
        raise LabelError(f"{path}: JSON that cannot be read: {error}") from None
    if not isinstance(document, dict) or not all(
        isinstance(document.get(name), list) for name in _LISTS
    ):
        raise LabelError(f"{path}: expected COCO's JSON, with lists {', '.join(_LISTS)}")
    return document


def _items(
    path: Path, document: Mapping[str, Any], name: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of one of COCO's lists, each with the words that name it in a message."""
    kind = _LISTS[name]
    for index, item in enumerate(document[name]):
        where = f"{path}: {kind} at index {index}"
        if not isinstance(item, dict):
            raise LabelError(f"{where}: expected an object, got {reprlib.repr(item)}")
        yield (f"{path}: {kind} {reprlib.repr(item['id'])}" if "id" in item else where), item


def _field(where: str, item: Mapping[str, Any], name: str, types: tuple[type, ...]) -> Any:
    value = item.get(name)
    if isinstance(value, bool) or not isinstance(value, types):
        wanted = {int: "a whole number", str: "text", list: "a list"}
        raise LabelError(
            f"{where}: expected {name} to be {' or '.join(wanted[kind] for kind in types)}, "
            f"got {reprlib.repr(value)}"
        )
    return value


def _size(where: str, item: Mapping[str, Any]) -> tuple[float, float] | None:
    sides = item.get("width"), item.get("height")
    if sides == (None, None):
        return None
    numbers = _numbers(sides)
    if numbers is None or not all(0 < side < np.inf for side in numbers):
        raise LabelError(
            f"{where}: expected a width and a height above 0, got {reprlib.repr(sides)}"
        )
    return numbers[0], numbers[1]


def _bbox(where: str, item: Mapping[str, Any], size: tuple[float, float] | None) -> list[float]:
    bbox = _field(where, item, "bbox", (list,))
    box = _numbers(bbox)
    if box is None or len(box) != 4:
        raise LabelError(f"{where}: expected bbox to be 4 numbers, got {reprlib.repr(bbox)}")
    fault = box_fault(box)
    if fault is not None:
        raise LabelError(f"{where}: bbox: {fault}, got {reprlib.repr(bbox)}")
    x, y, w, h = box
    if size is not None and w > 0 and h > 0:
        width, height = size
        if x >= width or y >= height or x + w <= 0 or y + h <= 0:
            raise LabelError(
                f"{where}: bbox {reprlib.repr(bbox)} lies outside its image of "
                f"{width:g} x {height:g} pixels"
            )
    return box


def _numbers(values: Sequence[Any]) -> list[float] | None:
    """Floats, infinite where they exceed a float; None where a value is no number."""
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return None
    try:
        return [float(value) for value in values]
    except OverflowError:
        return [np.inf] * len(values)
