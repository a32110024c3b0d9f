"""Photos with faces as training samples; random numbers depend on the position alone.

Every sample draws from a generator seeded with (seed, stage, epoch, index), so a run that is
resumed in the middle of an epoch sees what an uninterrupted one would have seen, with any
number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.augment import crop_to_frame, stretch_to_frame
from utils.blur import gaussian_blur
from utils.boxes import usable
from utils.image_files import jpeg_coded, read_photo
from utils.widerface import LabelledPhoto, find_labels, photo_path, read_labels

Position = tuple[int, int, int]
"""Stage, epoch and index of a sample."""


class DataError(Exception):
    """Training data that is missing or does not fit; the message says what to do."""


@dataclass(frozen=True)
class Batch:
    """Training batch on the CPU: uint8 images [B, 3, H, W] RGB; faces padded to the most.

    `blurred` is None where the variant being trained on is the only image.
    """

    images: Tensor
    blurred: Tensor | None
    boxes: Tensor  # float32 [B, M, 4] as (x1, y1, x2, y2) in pixels
    present: Tensor  # bool [B, M]
    names: list[str]

    def pin_memory(self) -> Batch:
        """Copy to page-locked memory; the loader calls this where a GPU is used."""
        blurred = None if self.blurred is None else self.blurred.pin_memory()
        return replace(
            self,
            images=self.images.pin_memory(),
            blurred=blurred,
            boxes=self.boxes.pin_memory(),
            present=self.present.pin_memory(),
        )


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

    def __len__(self) -> int:
        return len(self.source.photos)

    def __getitem__(self, position: Position) -> tuple[list[np.ndarray], np.ndarray, str]:
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


@dataclass(frozen=True)
class DetectorSamples(Dataset[Any]):
    """Random square crops of one image variant (`utils.augment.crop_to_frame`)."""

    source: Source
    seed: int
    frame: int
    crop: tuple[float, float]

    def __len__(self) -> int:
        return len(self.source.photos)

    def __getitem__(self, position: Position) -> tuple[list[np.ndarray], np.ndarray, str]:
        photo = self.source.photos[position[2]]
        image, boxes = crop_to_frame(
            read_photo(photo_path(self.source.images_dir, photo.path)).pixels,
            photo.boxes[usable(photo.boxes)],
            self.frame,
            self.crop,
            np.random.default_rng([self.seed, *position]),
        )
        return [image], boxes, photo.path


def collate(samples: Sequence[tuple[list[np.ndarray], np.ndarray, str]]) -> Batch | None:
    """Stack samples that kept a face; None if none did."""
    samples = [sample for sample in samples if len(sample[1])]
    if not samples:
        return None
    stacks = [
        torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
        for images in zip(*(sample[0] for sample in samples), strict=True)
    ]
    most = max(len(sample[1]) for sample in samples)
    boxes = torch.zeros(len(samples), most, 4)
    present = torch.zeros(len(samples), most, dtype=torch.bool)
    for row, (_, kept, _) in enumerate(samples):
        boxes[row, : len(kept)] = torch.from_numpy(kept)
        present[row, : len(kept)] = True
    blurred = stacks[1] if len(stacks) > 1 else None
    return Batch(stacks[0], blurred, boxes, present, [sample[2] for sample in samples])


@dataclass(frozen=True)
class EpochOrder(Sampler[Position]):
    """A random order of `count` samples, the same for the same seed, stage and epoch."""

    count: int
    seed: int
    stage: int
    epoch: int
    skip: int = 0

    def __len__(self) -> int:
        return self.count - self.skip

    def __iter__(self) -> Iterator[Position]:
        order = np.random.default_rng([self.seed, self.stage, self.epoch]).permutation(self.count)
        for index in order[self.skip :]:
            yield self.stage, self.epoch, int(index)


def epoch_loader(
    samples: GeneratorSamples | DetectorSamples,
    batch_size: int,
    stage: int,
    epoch: int,
    first_batch: int,
    workers: int,
    pin_memory: bool = False,
) -> DataLoader[Any]:
    """Batches of one epoch from `first_batch` on; the last, smaller batch is left out.

    `stage` tells apart passes of one epoch that must not see the same random numbers.
    """
    order = EpochOrder(len(samples), samples.seed, stage, epoch, skip=first_batch * batch_size)
    return DataLoader(
        samples,
        batch_size=batch_size,
        sampler=order,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_single_thread if workers else None,
        pin_memory=pin_memory,
    )


def _single_thread(_worker: int) -> None:
    # Each worker is one core's worth: OpenCV would otherwise start a thread per core in each.
    cv2.setNumThreads(1)
