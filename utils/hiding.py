"""Hides the faces of one photo, as steps that ask for the two networks where they need them.

The steps are generator functions without a network in them: whoever runs them answers what they
yield, in the same process (`models.anonymize`) or in another (`models.anonymize_folder`). So there
is one way for a photo and for a folder, and worker processes need not load PyTorch.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.blur import black, face_mask, gaussian_blur, mosaic
from utils.boxes import Boxes, as_boxes, outside_message, pixel_boxes, unite, usable
from utils.image_files import Pixels, jpeg_coded

METHODS = ("dartblur", "gaussian", "mosaic", "black")

RECIPE = 1
"""Raised when the same photo, boxes and settings give other pixels than before."""


class AnonymizeError(Exception):
    """The faces of a photo could not be hidden; the message is one line."""


@dataclass(frozen=True)
class FindFaces:
    """Asks for the faces of `image`, uint8 [H, W, 3] RGB, as `models.anonymize.find_faces`."""

    image: Pixels


@dataclass(frozen=True)
class RedrawFaces:
    """Asks for `blurred`, uint8 [H, W, 3] RGB, with the faces at `boxes` [N, 4] redrawn."""

    blurred: Pixels
    boxes: Boxes


T = TypeVar("T")
Steps = Generator[FindFaces | RedrawFaces, Any, T]


@dataclass(frozen=True)
class Anonymized:
    """A photo whose faces are hidden.

    pixels: uint8 [H, W, 3] RGB, outside the boxes those of the original to the bit.
    boxes: float64 [N, 4] as (x1, y1, x2, y2), the regions that were hidden.
    scores: float64 [N], the detector's face probabilities, NaN for given boxes; None where the
        detector was not asked.
    flags: what a reviewer should know, in this order: "empty_box" (a box of size zero was
        passed over), "tiny_box" (a box too small for the blur was filled with its mean colour
        first), "flat_box" (a box holds one colour, so that no change could be asked for),
        "searched_reduced" (the photo is larger than `detect.longest_side` and was searched
        for faces at that size: small faces may have been missed).
    """

    pixels: Pixels
    boxes: Boxes
    scores: NDArray[np.float64] | None
    flags: list[str]


def find_and_hide(
    image: Pixels,
    boxes: ArrayLike | None,
    method: str,
    config: Mapping[str, Any],
    detect: bool = False,
) -> Steps[Anonymized]:
    """Hide the faces at `boxes`, or those that are found where it is None.

    `image`: uint8 [H, W, 3] RGB. `detect`: search for faces also where boxes are given, and hide
    the union (`utils.boxes.unite`). Raises `AnonymizeError`; see `hide_faces`.
    """
    hidden_at, scores = yield from boxes_to_hide(image, boxes, detect)
    pixels, hidden, flags = yield from hide_faces(image, hidden_at, method, config)
    if scores is not None and max(image.shape[:2]) > config["detect"]["longest_side"]:
        flags.append("searched_reduced")
    return Anonymized(pixels, hidden_at[hidden], None if scores is None else scores[hidden], flags)


def boxes_to_hide(
    image: Pixels, given: ArrayLike | None, detect: bool = False
) -> Steps[tuple[Boxes, NDArray[np.float64] | None]]:
    """The boxes [N, 4] that `find_and_hide` hides, and the scores as in `Anonymized`."""
    if given is None:
        return (yield FindFaces(image))
    boxes = as_boxes(given)
    if not detect:
        return boxes, None
    _refuse_outside(boxes, image)  # before a found box could take one's place
    found, scores = yield FindFaces(image)
    boxes, places = unite(boxes, found)
    return boxes, np.append(scores, np.nan)[places]  # place -1, of a given box, is the NaN


def hide_faces(
    image: Pixels, boxes: ArrayLike, method: str, config: Mapping[str, Any]
) -> Steps[tuple[Pixels, NDArray[np.bool_], list[str]]]:
    """Hide what lies in `boxes`.

    `image`: uint8 [H, W, 3] RGB. `boxes`: [N, 4] as (x1, y1, x2, y2) in pixels; every pixel
    that a box touches is hidden. A box too small for the blur, which passes over sides of at
    most 1 px and whose kernel is a single pixel where no side reaches `2 / kernel_factor`, is
    filled with its mean colour first. A box of size zero is passed over.

    Returns the new pixels, bool [N] that tells which boxes were hidden, and the flags (see
    `Anonymized`). Raises `AnonymizeError` for a box outside the photo and where the result
    still shows a face's own pixels.
    """
    boxes = as_boxes(boxes)
    corners = pixel_boxes(boxes, *image.shape[:2])
    hidden = _refuse_outside(boxes, image)
    longest = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    tiny = hidden & (~usable(boxes) | (longest * config["blur"]["kernel_factor"] < 2))

    start = image.copy()
    for x1, y1, x2, y2 in corners[tiny].tolist():
        start[y1:y2, x1:x2] = start[y1:y2, x1:x2].mean(axis=(0, 1)).round().astype(np.uint8)
    if method == "dartblur":
        result = yield from _dartblur(start, boxes, config)
    elif method == "gaussian":
        result = gaussian_blur(start, boxes, config["blur"]["kernel_factor"])
    elif method in METHODS:
        result = mosaic(start, boxes) if method == "mosaic" else black(start, boxes)
    else:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")

    is_flat = _check_hidden(image, result, corners[hidden])
    flags = {"empty_box": ~hidden, "tiny_box": tiny, "flat_box": is_flat}
    return result, hidden, [flag for flag, which in flags.items() if which.any()]


def _dartblur(image: Pixels, boxes: Boxes, config: Mapping[str, Any]) -> Steps[Pixels]:
    """Have the blurred faces redrawn, and paste them and nothing else onto `image`."""
    mask = face_mask(boxes, *image.shape[:2])
    if not mask.any():
        return image
    blurred = gaussian_blur(image, boxes, config["blur"]["kernel_factor"])
    # The generator was trained on coded blur. What lies outside the boxes steers it, but the
    # coded pixels there do not reach the result.
    redrawn = yield RedrawFaces(jpeg_coded(blurred, config["blur"]["jpeg_quality"]), boxes)
    return np.where(mask[..., None] > 0, redrawn, image)


def _check_hidden(image: Pixels, result: Pixels, corners: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Refuse a result with a box left untouched; tell which boxes hold one colour. Bool [N]."""
    is_flat = np.zeros(len(corners), dtype=np.bool_)
    for index, (x1, y1, x2, y2) in enumerate(corners.tolist()):
        before = image[y1:y2, x1:x2]
        is_flat[index] = (before == before[0, 0]).all()
        if not is_flat[index] and np.array_equal(before, result[y1:y2, x1:x2]):
            raise AnonymizeError(
                f"the face at {x1} {y1} {x2 - x1} {y2 - y1} (x y w h) was left as it is"
            )
    return is_flat


def _refuse_outside(boxes: Boxes, image: Pixels) -> NDArray[np.bool_]:
    """Refuse a box outside the photo; tell which have a size and are thus hidden. Bool [N]."""
    hidden = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    outside = outside_message(boxes[hidden], *image.shape[:2])
    if outside:
        raise AnonymizeError(outside)
    return hidden
