"""Anonymises one photo: finds its faces, hides them, and checks that no box stayed as it was.

From Python, with the weights in this repository:

    from models.anonymize import load_anonymizer
    from utils.config import load_config

    anonymizer = load_anonymizer("dartblur", load_config())
    hidden = anonymizer(image).pixels            # image: uint8 [H, W, 3] RGB
    hidden = anonymizer(image, boxes).pixels     # boxes: [N, 4] as (x1, y1, x2, y2)
    hidden = anonymizer(image, boxes, detect=True).pixels    # those, and what the detector finds
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from models.detection import detect_at_scales
from models.generator import BlurGenerator
from models.redraw import redraw
from models.retinaface import RetinaFace
from models.weights import DETECTOR, GENERATOR, load_retinaface, load_weights
from utils.blur import black, face_mask, gaussian_blur, mosaic
from utils.boxes import Boxes, as_boxes, enlarge, outside_message, pixel_boxes, unite, usable
from utils.image_files import Pixels, jpeg_coded

METHODS = ("dartblur", "gaussian", "mosaic", "black")

CPU = torch.device("cpu")


class AnonymizeError(Exception):
    """The faces of a photo could not be hidden; the message is one line."""


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


@dataclass(frozen=True)
class Anonymizer:
    """One way to anonymise photos: a method with the networks and numbers that it needs.

    `generator` and `detector` in eval mode; the detector only for photos that are to be searched.
    `config`: as `utils.config.load_config` returns it.
    """

    method: str
    config: Mapping[str, Any]
    generator: nn.Module | None = None
    detector: RetinaFace | None = None

    def __call__(
        self, image: Pixels, boxes: ArrayLike | None = None, detect: bool = False
    ) -> Anonymized:
        """Hide the faces at `boxes`, or those that the detector finds where it is None.

        `image`: uint8 [H, W, 3] RGB. `boxes`: [N, 4] as (x1, y1, x2, y2) in pixels. `detect`:
        search for faces also where boxes are given, and hide the union (`utils.boxes.unite`).
        Raises `AnonymizeError`, `DetectionError` or `RedrawError`; there is no result then.
        """
        boxes, scores = self._boxes(image, boxes, detect)
        pixels, hidden, flags = anonymize(image, boxes, self.method, self.config, self.generator)
        if scores is not None and max(image.shape[:2]) > self.config["detect"]["longest_side"]:
            flags.append("searched_reduced")
        return Anonymized(pixels, boxes[hidden], None if scores is None else scores[hidden], flags)

    def _boxes(
        self, image: Pixels, given: ArrayLike | None, detect: bool
    ) -> tuple[Boxes, NDArray[np.float64] | None]:
        """What is to be hidden, [N, 4], and the scores as in `Anonymized`."""
        if given is not None:
            boxes = as_boxes(given)
            if not detect:
                return boxes, None
            _refuse_outside(boxes, image)  # before a found box could take one's place
        if self.detector is None:
            raise ValueError("this anonymizer has no detector to find faces with")
        found, scores = find_faces(self.detector, image, self.config)
        if given is None:
            return found, scores
        boxes, places = unite(boxes, found)
        return boxes, np.append(scores, np.nan)[places]  # place -1, of a given box, is the NaN


def load_anonymizer(
    method: str,
    config: Mapping[str, Any],
    device: torch.device = CPU,
    generator: Path = GENERATOR,
    detector: Path | None = DETECTOR,
) -> Anonymizer:
    """Load the networks that `method` needs from weight files.

    `detector` None: all boxes will be given. Raises `WeightsError`.
    """
    networks: dict[str, Any] = {}
    if method == "dartblur":
        networks["generator"] = BlurGenerator()
        load_weights(networks["generator"], generator)
    if detector is not None:
        networks["detector"] = load_retinaface(detector)
    for network in networks.values():
        network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
    return Anonymizer(method, config, **networks)


def find_faces(
    detector: RetinaFace, image: Pixels, config: Mapping[str, Any]
) -> tuple[Boxes, NDArray[np.float64]]:
    """Find the faces of uint8 [H, W, 3] RGB by the numbers in `config["detect"]`.

    Returns boxes float64 [N, 4], enlarged and so perhaps reaching over the photo's edge, and
    face probabilities float64 [N]. Raises `DetectionError`.
    """
    search = {key: config["detect"][key] for key in ("score", "nms_iou")}
    sides = {key: config["detect"][key] for key in ("longest_side", "shortest_pass")}
    boxes, scores = detect_at_scales(detector, image, **search, **sides)
    return enlarge(boxes, config["detect"]["enlarge"]), scores


def anonymize(
    image: Pixels,
    boxes: ArrayLike,
    method: str,
    config: Mapping[str, Any],
    generator: nn.Module | None = None,
) -> tuple[Pixels, NDArray[np.bool_], list[str]]:
    """Hide what lies in `boxes`.

    `image`: uint8 [H, W, 3] RGB. `boxes`: [N, 4] as (x1, y1, x2, y2) in pixels; every pixel
    that a box touches is hidden. A box too small for the blur, which passes over sides of at
    most 1 px and whose kernel is a single pixel where no side reaches `2 / kernel_factor`, is
    filled with its mean colour first. A box of size zero is passed over.

    Returns the new pixels, bool [N] that tells which boxes were hidden, and the flags (see
    `Anonymized`). Raises `AnonymizeError` for a box outside the photo and where the result
    still shows a face's own pixels, `RedrawError` for a generator that returns NaN.
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
        if generator is None:
            raise ValueError("the method dartblur needs a generator")
        result = _dartblur(start, boxes, config, generator)
    elif method == "gaussian":
        result = gaussian_blur(start, boxes, config["blur"]["kernel_factor"])
    elif method in METHODS:
        result = mosaic(start, boxes) if method == "mosaic" else black(start, boxes)
    else:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")

    is_flat = _check_hidden(image, result, corners[hidden])
    flags = {"empty_box": ~hidden, "tiny_box": tiny, "flat_box": is_flat}
    return result, hidden, [flag for flag, which in flags.items() if which.any()]


def _refuse_outside(boxes: Boxes, image: Pixels) -> NDArray[np.bool_]:
    """Refuse a box outside the photo; tell which have a size and are thus hidden. Bool [N]."""
    hidden = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    outside = outside_message(boxes[hidden], *image.shape[:2])
    if outside:
        raise AnonymizeError(outside)
    return hidden


def _dartblur(
    image: Pixels, boxes: Boxes, config: Mapping[str, Any], generator: nn.Module
) -> Pixels:
    """Redraw the blurred faces, and paste them and nothing else onto `image`."""
    mask = face_mask(boxes, *image.shape[:2])
    if not mask.any():
        return image
    blurred = gaussian_blur(image, boxes, config["blur"]["kernel_factor"])
    # The generator was trained on coded blur. What lies outside the boxes steers it, but the
    # coded pixels there do not reach the result.
    coded = torch.from_numpy(jpeg_coded(blurred, config["blur"]["jpeg_quality"]))
    frame = coded.to(next(generator.parameters()).device).permute(2, 0, 1)[None]
    with torch.inference_mode():
        numbers = {key: config["generator"][key] for key in ("face_size", "context")}
        redrawn = redraw(generator, frame, [boxes], **numbers)
    return np.where(mask[..., None] > 0, redrawn[0].permute(1, 2, 0).cpu().numpy(), image)


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
