from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from utils.augment import GREY, crop_to_frame, in_frame, stretch_to_frame

FRAME = 160
ASPECT, SCALE = (0.7, 1.3), (0.95, 1.05)
WHITE = np.full(3, 255, dtype=np.uint8)


def picture(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """Dark, with one bright box in it."""
    image = np.full((height, width, 3), 20, dtype=np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = WHITE
    return image


def bright_box(image: np.ndarray) -> np.ndarray:
    """The edges of the bright region, between pixels by its share of light."""
    level = image.astype(float).mean(axis=2)
    dark, bright = 20.0, float(level.max())
    share = ((level - dark) / (bright - dark)).clip(0, 1)
    rows, columns = share.max(axis=1), share.max(axis=0)
    edges = []
    for line in (columns, rows):
        inside = np.flatnonzero(line > 0.5)
        edges.append((inside[0], inside[-1] + 1))
    return np.array([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], dtype=float)


def stretch(
    images: list[np.ndarray], boxes: np.ndarray, seed: int, **changes: Any
) -> tuple[list[np.ndarray], np.ndarray]:
    options = {"frame": FRAME, "aspect": ASPECT, "scale": SCALE, "placements": 1, **changes}
    return stretch_to_frame(images, boxes, rng=np.random.default_rng(seed), **options)


@pytest.mark.parametrize("scale", [SCALE, (0.4, 0.6), (1.5, 2.0)])
def test_stretched_box_lies_where_the_pixels_are(scale: tuple[float, float]) -> None:
    box = (90, 60, 150, 130)
    image = picture(200, 300, box)
    flips = seen = 0
    for seed in range(60):
        (placed,), boxes = stretch([image], np.array([box], dtype=float), seed, scale=scale)
        assert placed.shape == (FRAME, FRAME, 3)
        assert placed.dtype == np.uint8
        if not len(boxes):
            continue
        seen += 1
        placed[(placed == GREY).all(axis=2)] = 20
        np.testing.assert_allclose(boxes[0], bright_box(placed), atol=1.0)
        flips += boxes[0, 0] + boxes[0, 2] > FRAME
    assert seen > 30
    assert 0 < flips < seen


@pytest.mark.parametrize("crop", [(0.3, 1.0), (0.9, 1.0), (0.2, 0.3)])
def test_cropped_box_lies_where_the_pixels_are(crop: tuple[float, float]) -> None:
    """Colours are jittered as well: the box stays brighter than what is around it."""
    box = (95, 60, 135, 110)
    image = picture(200, 300, box)
    seen = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        placed, boxes = crop_to_frame(image, np.array([box], dtype=float), FRAME, crop, rng)
        assert placed.shape == (FRAME, FRAME, 3)
        assert placed.dtype == np.uint8
        if not len(boxes):
            continue  # a small crop that has not met the face in its attempts
        (face,) = boxes
        if (face[2:] - face[:2] >= FRAME).all():
            continue  # nothing but face
        seen += 1
        level = placed.astype(float).mean(axis=2)
        level = 20 + 200 * (level - level.min()) / (level.max() - level.min())
        # One pixel of the photo is up to 4 of the frame; its edge is spread over as many.
        slack = 1.0 + FRAME / (crop[0] * 200) / 2
        np.testing.assert_allclose(face, bright_box(level[:, :, None].repeat(3, 2)), atol=slack)
    assert seen > 40


def test_clean_and_blurred_get_the_same_transform() -> None:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    first = coarse.repeat(8, axis=0).repeat(8, axis=1)
    boxes = np.array([[20.0, 30, 200, 140]])
    for seed in range(30):
        (placed, inverse), kept = stretch([first, 255 - first], boxes, seed, scale=(0.7, 1.4))
        photo = ~(placed == GREY).all(axis=2)
        total = placed.astype(int) + inverse
        assert np.abs(total[photo] - 255).max() <= 1
        assert (total[~photo] == 2 * GREY).all()
        (alone,), same = stretch([first], boxes, seed, scale=(0.7, 1.4))
        np.testing.assert_array_equal(alone, placed)
        np.testing.assert_array_equal(same, kept)


def test_aspect_and_scale_are_drawn_from_their_ranges() -> None:
    image = np.full((100, 300, 3), 20, dtype=np.uint8)  # its own aspect does not matter
    box = np.array([[100.0, 30, 200, 70]])
    ratios, longer_sides, corners = [], [], []
    for seed in range(400):
        (placed,), boxes = stretch([image], box, seed, scale=(0.5, 0.9))
        rows, columns = (placed != GREY).all(axis=2).nonzero()
        width, height = np.ptp(columns) + 1, np.ptp(rows) + 1
        assert len(rows) == width * height  # one upright rectangle
        ratios.append(width / height)
        longer_sides.append(max(width, height) / FRAME)
        corners.append((columns.min() / max(1, FRAME - width), rows.min() / (FRAME - height)))
        np.testing.assert_allclose(boxes[0, 2] - boxes[0, 0], width / 3)
    pixel = 1 / (0.5 * FRAME)
    assert 0.7 / 1.3 - pixel <= min(ratios) < 0.62
    assert 1.6 < max(ratios) <= 1.3 / 0.7 + 2 * pixel
    assert np.median(ratios) == pytest.approx(1.0, abs=0.1)
    assert 0.5 - pixel <= min(longer_sides) < 0.53
    assert 0.87 < max(longer_sides) <= 0.9 + pixel
    assert np.mean(longer_sides) == pytest.approx(0.7, abs=0.02)
    for axis in np.array(corners).T:  # anywhere on the grey, corner to corner
        assert axis.min() < 0.05
        assert axis.max() > 0.95
        assert axis.mean() == pytest.approx(0.5, abs=0.06)


def test_half_of_the_samples_are_flipped() -> None:
    image = picture(100, 100, (0, 0, 50, 100))
    rng = np.random.default_rng(1)
    stretched = [stretch([image], np.array([[0.0, 0, 50, 100]]), s)[1] for s in range(300)]
    cropped = [
        crop_to_frame(image, np.array([[0.0, 0, 50, 100]]), FRAME, (1.0, 1.0), rng)[1]
        for _ in range(300)
    ]
    for boxes in (stretched, cropped):
        flipped = sum(bool(kept[0, :].reshape(2, 2)[:, 0].mean() > FRAME / 2) for kept in boxes)
        assert 110 < flipped < 190


def test_what_a_frame_keeps() -> None:
    boxes = np.array(
        [
            [10.0, 10, 30, 40],
            [-10, -10, 12, 30],  # centre just inside: kept, cut at the edge
            [-12, 5, 10, 30],  # centre just outside
            [90, 90, 109, 109],
            [90, 90, 110, 110],  # centre on the far edge, which is outside
            [50, 50, 51, 70],  # one pixel wide
            [50, 50, 51.1, 70],
            [-8, 20, 9, 21],  # one pixel high
            [70, 70, 60, 80],  # turned
            [-500, -500, 600, 600],  # larger than the frame
        ]
    )
    kept, selection = in_frame(boxes, 100)
    assert selection.tolist() == [True, True, False, True, False, False, True, False, False, True]
    assert kept.tolist() == [
        [10, 10, 30, 40],
        [0, 0, 12, 30],
        [90, 90, 100, 100],
        [50, 50, 51.1, 70],
        [0, 0, 100, 100],
    ]
    nothing, none = in_frame(np.zeros((0, 4)), 100)
    assert nothing.shape == (0, 4)
    assert none.shape == (0,)


def test_faces_that_a_crop_cuts_off_are_dropped() -> None:
    """Two faces far apart, and a crop that has room for one: never both, often either."""
    image = np.zeros((100, 400, 3), dtype=np.uint8)
    faces = np.array([[5.0, 30, 35, 70], [365, 30, 395, 70]])
    for seed in range(20):
        rng = np.random.default_rng(seed)
        _, boxes = crop_to_frame(image, faces, FRAME, (0.8, 1.0), rng)
        assert len(boxes) == 1
        (_, same), kept = stretch([image, image], faces, seed, scale=(2.5, 3.0), placements=200)
        assert len(kept) <= 1
        assert same.shape == (FRAME, FRAME, 3)


def test_more_placements_keep_more_faces() -> None:
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    face = np.array([[45.0, 6, 55, 14]])
    counts = [
        sum(len(stretch([image], face, s, scale=(2, 3), placements=n)[1]) for s in range(60))
        for n in (1, 30)
    ]
    assert counts[0] < 20
    assert counts[1] > 50


def test_a_photo_without_faces_is_placed_all_the_same() -> None:
    image = np.zeros((50, 70, 3), dtype=np.uint8)
    (placed,), boxes = stretch([image], np.zeros((0, 4)), 0, placements=3)
    assert placed.shape == (FRAME, FRAME, 3)
    assert boxes.shape == (0, 4)
    placed, boxes = crop_to_frame(image, boxes, FRAME, (0.3, 1.0), np.random.default_rng(0))
    assert placed.shape == (FRAME, FRAME, 3)
    assert boxes.shape == (0, 4)


def test_inputs_are_left_alone() -> None:
    image, boxes = picture(80, 90, (10, 10, 40, 40)), np.array([[10.0, 10, 40, 40]])
    before = image.copy(), boxes.copy()
    for seed in range(6):
        stretch([image], boxes, seed)
        crop_to_frame(image, boxes, FRAME, (0.3, 1.0), np.random.default_rng(seed))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(boxes, before[1])
