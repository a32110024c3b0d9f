"""What a label file of any kind comes down to: the face boxes of each photo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.boxes import Boxes
from utils.widerface import LabelError


@dataclass(frozen=True)
class PhotoLabels:
    """The labelled boxes of one photo.

    path: relative to the photos' folder, with `/`.
    boxes: float64 [N, 4] as (x1, y1, x2, y2), in pixels or, where `is_relative`, in fractions of
        the photo's width and height: what is to be hidden comes from `on`.
    size: (width, height) of the photo by the label file; None where that does not say.
    """

    path: str
    boxes: Boxes
    size: tuple[float, float] | None = None
    is_relative: bool = False

    def on(self, height: int, width: int) -> Boxes:
        """The boxes in pixels of the upright photo, which is `height` × `width`; [N, 4].

        Raises LabelError where the label file gives the photo another size: its boxes were then
        drawn on another picture, such as the one before it was turned upright.
        """
        if self.size is not None and self.size != (width, height):
            raise LabelError(
                f"the label file gives {self.size[0]:g} x {self.size[1]:g} pixels, the upright "
                f"photo has {width} x {height}; draw its boxes on the photo as it is"
            )
        if not self.is_relative:
            return self.boxes
        boxes = self.boxes * np.array([width, height, width, height], dtype=np.float64)
        # Files hold six digits. Without this a box drawn on whole pixels would reach a thousandth
        # of a pixel further, and so hide a pixel more.
        return boxes.round(2)


@dataclass(frozen=True)
class Labels:
    """What a label file, or a folder of them, says.

    photos: each photo once.
    faults: photo to reason, for what must not be anonymised: photos that share a label file.
    notes: lines for the summary: which classes are hidden, label files that belong to no photo.
    """

    photos: list[PhotoLabels]
    faults: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def chosen_classes(path: Path, classes: Sequence[str], names: Mapping[Any, str]) -> set[Any]:
    """The keys of `names` (key to name) that the user's words `classes` name; all without words.

    A word is a name or, where no class has that name, a key. Raises LabelError for neither.
    """
    if not classes:
        return set(names)
    chosen: set[Any] = set()
    for wanted in classes:
        keys = {key for key, name in names.items() if name == wanted}
        keys = keys or {key for key in names if str(key) == wanted}
        if not keys:
            known = ", ".join(names.values()) or "none"
            raise LabelError(f"{path}: no class {wanted!r}; there are: {known}")
        chosen |= keys
    return chosen


def class_note(path: Path, counts: Counter[Any], chosen: set[Any], names: Mapping[Any, str]) -> str:
    """Say in a line how many boxes of which classes are hidden, and how many are not."""

    def listed(keys: Iterable[Any]) -> str:
        return ", ".join(f"{names[key]} ({counts[key]})" for key in keys) or "none"

    ordered = sorted(counts, key=lambda key: (-counts[key], names[key]))
    passed = [key for key in ordered if key not in chosen]
    hidden = listed(key for key in ordered if key in chosen)
    rest = f"; not hidden: {listed(passed)}" if passed else ""
    return f"{path}: label classes hidden (boxes): {hidden}{rest}"
