"""Writes a variant of labelled photos: their faces hidden in one way, or the photos as they are.

Every variant is coded as dartblur.py codes its copies by default, so that the coding tells nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from tqdm import tqdm

from models.anonymize import AnonymizeError, Anonymizer, load_anonymizer
from models.redraw import RedrawError
from utils.blur import Pixels, blend_in_ellipses, decoy_boxes
from utils.boxes import as_boxes
from utils.device import pick_device
from utils.image_files import PhotoError, read_photo, write_photo
from utils.jobs import run_jobs
from utils.widerface import LabelledPhoto, photo_path

VARIANTS = (
    "clean",
    "gaussian",
    "gaussian-ellipse",
    "gaussian-decoy",
    "mosaic",
    "black",
    "dartblur",
)

FOLDS = 2


class VariantError(Exception):
    """A photo whose variant could not be written; the message is one line that names both."""


@dataclass(frozen=True)
class VariantPhotos:
    """A variant of the photos of one folder, to be written to `output` under the same names.

    name: one of `VARIANTS`.
    config: as `utils.config.load_config` returns it.
    generators: weight files for "dartblur": one, or `FOLDS` of them, of which the n-th was trained
        on the photos of fold n and redraws the others.
    device: as `utils.device.pick_device` takes it.
    """

    name: str
    photos: Sequence[LabelledPhoto]
    images_dir: Path
    output: Path
    config: Mapping[str, Any]
    generators: Sequence[Path]
    device: str


@dataclass(frozen=True)
class Variant:
    """One way to change a photo; see `VariantPhotos`. No anonymizer leaves it as it is."""

    name: str
    anonymizers: Sequence[Anonymizer]

    def __call__(self, pixels: Pixels, boxes: ArrayLike, path: str) -> Pixels:
        """Change uint8 [H, W, 3] RGB at `boxes` [N, 4], (x1, y1, x2, y2), all of the photo's faces.

        `path`, that of the label file, decides on decoys and generator. Boxes are hidden as
        dartblur.py hides labelled ones; see `models.anonymize.anonymize` and what it raises.
        """
        if not self.anonymizers:
            return pixels
        hidden = as_boxes(boxes)
        if self.name == "gaussian-decoy":
            height, width = pixels.shape[:2]
            decoys = decoy_boxes(hidden, height, width, np.random.default_rng(_digest(path)))
            hidden = np.concatenate([hidden, decoys])
        # With two generators: the one that was not trained on this photo.
        index = 1 - fold_of(path) if len(self.anonymizers) == FOLDS else 0
        result = self.anonymizers[index](pixels, hidden).pixels
        if self.name == "gaussian-ellipse":
            return blend_in_ellipses(pixels, result, boxes)
        return result


def load_variant(
    name: str, config: Mapping[str, Any], generators: Sequence[Path], device: torch.device
) -> Variant:
    """Load the networks that a variant needs. Raises `WeightsError`."""
    if name == "clean":
        return Variant(name, [])
    method = name.split("-")[0]
    files = generators if method == "dartblur" else generators[:1]
    return Variant(
        name, [load_anonymizer(method, config, device, file, detector=None) for file in files]
    )


def fold_of(path: str) -> int:
    """The fold, 0 or 1, of a photo, by its path in the label file alone."""
    return _digest(path) % FOLDS


def _digest(path: str) -> int:
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big")


def write_variants(variants: Sequence[VariantPhotos], at_once: int = 1) -> None:
    """Write the photos that are not there yet, in `at_once` processes.

    Files appear complete or not at all. Raises `VariantError` at the first photo that cannot be
    read, hidden or written, `WeightsError`, or `LabelError` for a path that leads out of a folder.
    """
    jobs = []
    for variant in variants:
        missing = [
            photo
            for photo in variant.photos
            if not photo_path(variant.output, photo.path).is_file()
        ]
        for place in range(min(at_once, len(missing))):
            jobs.append((replace(variant, photos=missing[place::at_once]), place))
    run_jobs(_write_photos, jobs, at_once)


def _write_photos(variant: VariantPhotos, place: int) -> None:
    """Write all photos; `place` is the line of the progress bar."""
    change = load_variant(
        variant.name, variant.config, variant.generators, pick_device(variant.device)
    )
    coding = variant.config["output"]
    for photo in tqdm(variant.photos, desc=variant.name, unit="photo", position=place):
        source = photo_path(variant.images_dir, photo.path)
        try:
            original = read_photo(source)
            write_photo(
                photo_path(variant.output, photo.path),
                change(original.pixels, photo.boxes, photo.path),
                original.icc_profile,
                jpeg_quality=coding["jpeg_quality"],
                subsampling=coding["jpeg_subsampling"],
            )
        except PhotoError as error:  # names the photo itself
            raise VariantError(f"{variant.name}: {error}") from None
        except (AnonymizeError, RedrawError) as error:
            raise VariantError(f"{variant.name}: {source}: {error}") from None
