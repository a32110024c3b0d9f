"""Photos with faces as training samples; random numbers depend on the position alone.

Every sample draws from a generator seeded with (seed, stage, epoch, index), so a run that is
resumed in the middle of an epoch sees what an uninterrupted one would have seen, with any
number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.augment import crop_to_frame, stretch_to_frame
from utils.blur import gaussian_blur
from utils.boxes import usable
from utils.image_files import jpeg_coded, read_photo
from utils.sampling import BatchOrder, Position
from utils.tiles import TilePlan, frame_masks, plan_batch
from utils.widerface import LabelledPhoto, find_labels, photo_path, read_labels

Sample = tuple[list[np.ndarray], np.ndarray, str]
"""Frames uint8 [H, W, 3] RGB, boxes float64 [N, 4] as (x1, y1, x2, y2), the photo's name."""

B = TypeVar("B", bound="Batch")


class DataError(Exception):
    """Training data that is missing or does not fit; the message says what to do."""


@dataclass(frozen=True)
class Batch:
    """Training batch: images uint8 [B, 3, H, W] RGB; faces padded to the most."""

    images: Tensor
    boxes: Tensor  # float32 [B, M, 4] as (x1, y1, x2, y2) in pixels
    present: Tensor  # bool [B, M]
    names: list[str]

    def _mapped(self: B, change: Callable[[Any], Any]) -> B:
        parts = {name: change(part) for name, part in vars(self).items() if name != "names"}
        return replace(self, **parts)

    def pin_memory(self: B) -> B:
        """Copy to page-locked memory; the loader calls this where a GPU is used."""
        return self._mapped(lambda part: part.pin_memory())

    def to(self: B, device: torch.device) -> B:
        """Move everything; from page-locked memory without waiting."""
        return self._mapped(
            lambda part: (
                part.to(device)
                if isinstance(part, TilePlan)
                else part.to(device, non_blocking=True)
            )
        )


@dataclass(frozen=True)
class GeneratorBatch(Batch):
    """Clean images with their blurred copies, and all that is known before the step."""

    blurred: Tensor  # uint8 [B, 3, H, W] RGB
    mask: Tensor  # uint8 [B, 1, H, W], 1 inside the boxes
    plan: TilePlan


@dataclass(frozen=True)
class Source:
    """Photos of a label file, and where their clean and blurred pixels lie.

    `blurred_dir` None: the copy is blurred and JPEG-coded when it is needed.
    """

    photos: list[LabelledPhoto]
    images_dir: Path
    blurred_dir: Path | None = None


def wider_source(root: Path, split: str, blurred: Path | None = None) -> Source:
    """The photos of one WIDER FACE split that have a usable face.

    `blurred` is the folder that holds the blurred copies. Raises `DataError` where
    photos are missing, `FileNotFoundError` or `utils.widerface.LabelError` for the labels.
    """
    return labelled_source(root / split / "images", find_labels(root, split), blurred)


def labelled_source(images_dir: Path, labels: Path, blurred: Path | None = None) -> Source:
    """The photos of any label file that have a usable face; see `wider_source`."""
    photos = [photo for photo in read_labels(labels) if usable(photo.boxes).any()]
    if not photos:
        raise DataError(f"{labels}: no photo with a face of more than 1 px")
    for directory in [images_dir] if blurred is None else [images_dir, blurred]:
        missing = [p.path for p in photos if not photo_path(directory, p.path).is_file()]
        if missing:
            raise DataError(
                f"{directory}: {len(missing)} of {len(photos)} photos of {labels} are missing, "
                f"first {missing[0]}. Photos come from data/prepare_widerface.py, blurred "
                f"copies from gaussblur.py, other variants from dartblur.py"
            )
    return Source(photos, images_dir, blurred)


def validation_source(root: Path) -> Source:
    """All validation photos, with the official labels (they flag invalid faces) where present."""
    official = root / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    labels = official if official.is_file() else find_labels(root, "val")
    return Source(read_labels(labels), root / "val" / "images")


@dataclass(frozen=True)
class GeneratorSamples(Dataset[Any]):
    """Clean and blurred frames under one random stretch (`utils.augment.stretch_to_frame`)."""

    source: Source
    seed: int
    frame: int
    aspect: tuple[float, float]
    scale: tuple[float, float]
    placements: int
    kernel_factor: float
    jpeg_quality: int
    face_size: int
    context: int

    def __len__(self) -> int:
        return len(self.source.photos)

    def __getitem__(self, position: Position) -> Sample:
        photo = self.source.photos[position[2]]
        clean = read_photo(photo_path(self.source.images_dir, photo.path)).pixels
        if self.source.blurred_dir is None:
            blurred = jpeg_coded(
                gaussian_blur(clean, photo.boxes, self.kernel_factor), self.jpeg_quality
            )
        else:
            blurred = read_photo(photo_path(self.source.blurred_dir, photo.path)).pixels
        if blurred.shape != clean.shape:
            raise DataError(
                f"{photo.path}: the blurred copy's size differs from the photo's; "
                f"run gaussblur.py --overwrite"
            )
        images, boxes = stretch_to_frame(
            [clean, blurred],
            photo.boxes[usable(photo.boxes)],
            self.frame,
            self.aspect,
            self.scale,
            self.placements,
            np.random.default_rng([self.seed, *position]),
        )
        return images, boxes, photo.path

    def collate(self, samples: Sequence[Sample]) -> GeneratorBatch | None:
        """Stack the samples that kept a face and plan their tiles; None if none did."""
        (clean, blurred), faces, labels = _stacked(samples)
        if not faces:
            return None
        return GeneratorBatch(
            clean,
            *labels,
            blurred,
            frame_masks(faces, self.frame, self.frame),
            plan_batch(faces, self.frame, self.frame, self.face_size, self.context),
        )


@dataclass(frozen=True)
class DetectorSamples(Dataset[Any]):
    """Random square crops of one image variant (`utils.augment.crop_to_frame`)."""

    source: Source
    seed: int
    frame: int
    crop: tuple[float, float]

    def __len__(self) -> int:
        return len(self.source.photos)

    def __getitem__(self, position: Position) -> Sample:
        photo = self.source.photos[position[2]]
        image, boxes = crop_to_frame(
            read_photo(photo_path(self.source.images_dir, photo.path)).pixels,
            photo.boxes[usable(photo.boxes)],
            self.frame,
            self.crop,
            np.random.default_rng([self.seed, *position]),
        )
        return [image], boxes, photo.path

    def collate(self, samples: Sequence[Sample]) -> Batch | None:
        """Stack the samples that kept a face; None if none did."""
        (images,), faces, labels = _stacked(samples)
        return Batch(images, *labels) if faces else None


def _stacked(
    samples: Sequence[Sample],
) -> tuple[list[Tensor], list[np.ndarray], tuple[Tensor, Tensor, list[str]]]:
    """Frames [B, 3, H, W], faces per image, and the padded faces with the names, of the samples
    that kept a face.
    """
    kept = [sample for sample in samples if len(sample[1])]
    stacks = []
    for frames in zip(*(images for images, _, _ in kept or samples), strict=True):
        stacks.append(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous())
    most = max((len(boxes) for _, boxes, _ in kept), default=0)
    padded = torch.zeros(len(kept), most, 4)
    present = torch.zeros(len(kept), most, dtype=torch.bool)
    for row, (_, boxes, _) in enumerate(kept):
        padded[row, : len(boxes)] = torch.from_numpy(boxes)
        present[row, : len(boxes)] = True
    faces = [boxes for _, boxes, _ in kept]
    return stacks, faces, (padded, present, [name for _, _, name in kept])


def run_loader(
    samples: GeneratorSamples | DetectorSamples, order: BatchOrder, workers: int, pin_memory: bool
) -> DataLoader[Any]:
    """All batches of `order`; its worker processes live as long as the run.

    An item is a batch, or None where no sample kept a face.
    """
    return DataLoader(
        samples,
        batch_sampler=order,
        num_workers=workers,
        collate_fn=samples.collate,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_single_thread if workers else None,
        pin_memory=pin_memory,
    )


def _single_thread(_worker: int) -> None:
    # Each worker is one core's worth: OpenCV would otherwise start a thread per core in each.
    cv2.setNumThreads(1)
