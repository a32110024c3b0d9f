"""Random geometry and colour of training samples; boxes follow the pixels.

Images are uint8 [H, W, 3] RGB; boxes float64 [N, 4] as (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

GREY = 128


def in_frame(boxes: np.ndarray, frame: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes a square frame keeps: centre inside, sides over 1 px once clipped.

    Returns the clipped boxes that are kept, [M, 4], and the bool [N] selection.
    """
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    clipped = boxes.clip(0, frame)
    kept = ((centre >= 0) & (centre < frame)).all(axis=1) & (
        (clipped[:, 2:] - clipped[:, :2]) > 1
    ).all(axis=1)
    return clipped[kept], kept


def stretch_to_frame(
    images: Sequence[np.ndarray],
    boxes: np.ndarray,
    frame: int,
    aspect: tuple[float, float],
    scale: tuple[float, float],
    placements: int,
    rng: np.random.Generator,
) -> tuple[list[np.ndarray], np.ndarray]:
    """The generator's augmentation: one random stretch, placement and flip for all `images`.

    The photo's own aspect is replaced by U(aspect) / U(aspect) and its longer side by
    U(scale) of the frame; it is placed at random, on grey where smaller, cropped where
    larger, and flipped with p = 0.5. Up to `placements` positions are tried until a face
    is kept. `images` must share one size. Returns the [frame, frame, 3] images and
    the boxes of the faces kept.
    """
    height, width = images[0].shape[:2]
    ratio = rng.uniform(*aspect) / rng.uniform(*aspect)
    longer = rng.uniform(*scale) * frame
    new_width = max(1, round(longer * min(1.0, ratio)))
    new_height = max(1, round(longer / max(1.0, ratio)))
    stretch = np.array([new_width / width, new_height / height] * 2)
    for _ in range(placements):
        left = round(rng.random() * (frame - new_width))
        top = round(rng.random() * (frame - new_height))
        kept, _ = in_frame(boxes * stretch + np.array([left, top, left, top]), frame)
        if len(kept):
            break
    shrinks = new_width * new_height < width * height
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    placed = [
        _place(
            cv2.resize(image, (new_width, new_height), interpolation=interpolation),
            left,
            top,
            frame,
        )
        for image in images
    ]
    if rng.random() < 0.5:
        placed, kept = _flip(placed, kept, frame)
    return placed, kept


def crop_to_frame(
    image: np.ndarray,
    boxes: np.ndarray,
    frame: int,
    crop: tuple[float, float],
    rng: np.random.Generator,
    attempts: int = 50,
) -> tuple[np.ndarray, np.ndarray]:
    """The detector's augmentation: a random square crop resized to the frame, flip, colour.

    The crop's side is U(crop) of the photo's shorter side; positions are drawn until the
    centre of a face is inside, at most `attempts` times. Returns the image
    [frame, frame, 3] and the boxes of the faces kept, [M, 4].
    """
    height, width = image.shape[:2]
    for _ in range(attempts):
        side = max(1, round(rng.uniform(*crop) * min(height, width)))
        left = int(rng.integers(0, width - side + 1))
        top = int(rng.integers(0, height - side + 1))
        zoom = frame / side
        kept, _ = in_frame((boxes - np.array([left, top, left, top])) * zoom, frame)
        if len(kept):
            break
    region = image[top : top + side, left : left + side]
    interpolation = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    placed = [cv2.resize(region, (frame, frame), interpolation=interpolation)]
    if rng.random() < 0.5:
        placed, kept = _flip(placed, kept, frame)
    return _jitter_colour(placed[0], rng), kept


def _place(image: np.ndarray, left: int, top: int, frame: int) -> np.ndarray:
    canvas = np.full((frame, frame, 3), GREY, dtype=np.uint8)
    height, width = image.shape[:2]
    x1, y1 = max(left, 0), max(top, 0)
    x2, y2 = min(left + width, frame), min(top + height, frame)
    canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
    return canvas


def _flip(
    images: Sequence[np.ndarray], boxes: np.ndarray, frame: int
) -> tuple[list[np.ndarray], np.ndarray]:
    flipped = boxes.copy()
    flipped[:, [0, 2]] = frame - boxes[:, [2, 0]]
    return [np.ascontiguousarray(image[:, ::-1]) for image in images], flipped


def _jitter_colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    contrast, brightness = rng.uniform(0.6, 1.4), rng.uniform(-32, 32)
    hue, saturation = rng.uniform(-9, 9), rng.uniform(0.6, 1.4)
    values = np.arange(256)
    image = cv2.LUT(image, (values * contrast + brightness).clip(0, 255).astype(np.uint8))
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)  # hue 0-179
    tables = np.stack(
        [(values + hue) % 180, (values * saturation).clip(0, 255), values], axis=-1
    ).astype(np.uint8)
    return cv2.cvtColor(cv2.LUT(hsv, tables[None]), cv2.COLOR_HSV2RGB)
