"""Anonymises one photo: finds its faces, hides them, and checks that no box stayed as it was.

From Python, with the weights in this repository:

    import numpy as np
    from PIL import Image
    from models.anonymize import anonymize

    with Image.open("portrait.png") as file:
        image = np.asarray(file.convert("RGB"))    # uint8 [H, W, 3]
    hidden = anonymize(image)                      # faces found by RetinaFace
    boxes = [[120, 40, 220, 170]]                  # or given as (x1, y1, x2, y2)
    hidden = anonymize(image, boxes)
    Image.fromarray(hidden).save("hidden.png")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from models.detection import detect_at_scales, fold_batch_norms
from models.generator import BlurGenerator
from models.redraw import redraw_frames
from models.retinaface import RetinaFace
from models.weights import DETECTOR, GENERATOR, load_retinaface, load_weights
from utils.boxes import Boxes, enlarge
from utils.config import load_config
from utils.hiding import (
    METHODS,
    Anonymized,
    AnonymizeError,
    FindFaces,
    RedrawFaces,
    find_and_hide,
)
from utils.image_files import Pixels

__all__ = [
    "METHODS",
    "AnonymizeError",
    "Anonymized",
    "Anonymizer",
    "anonymize",
    "find_faces",
    "find_faces_of",
    "load_anonymizer",
]

CPU = torch.device("cpu")

CALL_PIXELS = {"cpu": 1 << 17, "cuda": 1 << 21}
"""Pixels of one generator call, at most, by the kind of device: bounds its memory."""


def anonymize(image: Pixels, boxes: ArrayLike | None = None) -> Pixels:
    """Redraw the faces of a photo with the weights and settings in this repository.

    `image`: uint8 [H, W, 3] RGB, upright. `boxes`: [N, 4] as (x1, y1, x2, y2) in pixels, the faces;
    None: those that RetinaFace finds. Returns a new array, outside the boxes equal to `image`. On
    the CPU; networks are loaded once. Raises `ValueError` for another kind of array,
    `AnonymizeError`, `DetectionError` or `RedrawError` where a face may not be hidden; there is no
    result then. `load_anonymizer` offers other methods, weights and devices.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape[2:] != (3,):
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image)
        raise ValueError(f"image must be uint8 [H, W, 3], not {kind}")
    return _shipped()(image, boxes).pixels


@lru_cache(maxsize=1)
def _shipped() -> Anonymizer:
    return load_anonymizer("dartblur", load_config())


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
        steps = find_and_hide(image, boxes, self.method, self.config, detect)
        try:
            request = next(steps)
            while True:
                if isinstance(request, FindFaces):
                    request = steps.send(self.find(request.image))
                else:
                    request = steps.send(self.redraw([request])[0])
        except StopIteration as stop:
            return stop.value

    def find(self, image: Pixels) -> tuple[Boxes, NDArray[np.float64]]:
        """Find the faces of one photo; see `find_faces`."""
        if self.detector is None:
            raise ValueError("this anonymizer has no detector to find faces with")
        return find_faces(self.detector, image, self.config)

    def redraw(self, requests: list[RedrawFaces]) -> list[Pixels]:
        """Redraw the blurred faces of several photos at once; see `redraw_frames`."""
        if self.generator is None:
            raise ValueError(f"this anonymizer, of the method {self.method}, has no generator")
        device = next(self.generator.parameters()).device
        return redraw_frames(
            self.generator,
            [request.blurred for request in requests],
            [request.boxes for request in requests],
            self.config["generator"]["face_size"],
            self.config["generator"]["context"],
            CALL_PIXELS[device.type],
        )


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
    if detector is not None:
        fold_batch_norms(networks["detector"])
    return Anonymizer(method, config, **networks)


def find_faces(
    detector: RetinaFace, image: Pixels, config: Mapping[str, Any]
) -> tuple[Boxes, NDArray[np.float64]]:
    """Find the faces of uint8 [H, W, 3] RGB by the numbers in `config["detect"]`.

    Returns boxes float64 [N, 4], enlarged and so perhaps reaching over the photo's edge, and
    face probabilities float64 [N]. Raises `DetectionError`.
    """
    return find_faces_of(detector, [image], config)[0]


def find_faces_of(
    detector: RetinaFace, images: Sequence[Pixels], config: Mapping[str, Any]
) -> list[tuple[Boxes, NDArray[np.float64]]]:
    """Find the faces of several photos of any sizes at once; for each what `find_faces` returns.

    Raises `DetectionError` if one of the photos brings the detector to NaN or infinity: the
    caller tries them one by one, and only that one fails.
    """
    search = dict(config["detect"])
    factor = search.pop("enlarge")
    found = detect_at_scales(detector, images, **search)
    return [(enlarge(boxes, factor), scores) for boxes, scores in found]
