import math
import platform
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

import utils.blur
from utils.blur import Pixels, black, face_mask, gaussian_blur, mosaic
from utils.image_files import read_photo
from utils.widerface import find_labels, photo_path, read_labels

WIDERFACE = Path(__file__).resolve().parents[1].parent / "shared" / "widerface"
ANONYMISERS: dict[str, Callable[[Pixels, ArrayLike], Pixels]] = {
    "gaussian": gaussian_blur,
    "mosaic": mosaic,
    "black": black,
}


def noise(height: int, width: int, seed: int = 3) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int) -> Pixels:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / 17), np.cos(columns / 23), np.sin((rows + columns) / 31)]
    return np.round(127.5 + 127.5 * np.stack(waves, axis=2)).astype(np.uint8)


def edges(height: int, width: int) -> Pixels:
    """Black and white only: the largest sums, and many ties in rounding."""
    return np.where(noise(height, width) > 127, 255, 0).astype(np.uint8)


def largest_difference(first: Pixels, second: Pixels) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max(initial=0))


def slow_blur(region: Pixels, kernel_width: int, kernel_height: int) -> NDArray[np.float64]:
    """The blur by its formula, pixel by pixel in float64, mirrored without the end pixel."""

    def weights(size: int) -> list[float]:
        sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
        raw = [math.exp(-((i - size // 2) ** 2) / (2 * sigma**2)) for i in range(size)]
        return [weight / sum(raw) for weight in raw]

    def mirrored(position: int, length: int) -> int:
        while not 0 <= position < length:
            position = -position if position < 0 else 2 * (length - 1) - position
        return position

    height, width = region.shape[:2]
    across = np.zeros(region.shape)
    for i, weight in enumerate(weights(kernel_width)):
        for x in range(width):
            across[:, x] += weight * region[:, mirrored(x + i - kernel_width // 2, width)]
    result = np.zeros(region.shape)
    for i, weight in enumerate(weights(kernel_height)):
        for y in range(height):
            result[y] += weight * across[mirrored(y + i - kernel_height // 2, height)]
    return result


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("width", "height", "kernel"),
    # The kernel by hand: half the side, rounded down, the next odd number where that is even.
    [(18, 20, (9, 11)), (41, 22, (21, 11)), (62, 75, (31, 37)), (150, 90, (75, 45))],
)
def test_blur_follows_the_formula(
    width: int, height: int, kernel: tuple[int, int], exact: bool
) -> None:
    region = (slice(15, 15 + height), slice(10, 10 + width))
    # OpenCV's kernels are rounded to 1/256: nothing on a smooth picture, where a kernel two pixels
    # longer or another border is off by more than one grey level, but up to two levels on noise.
    for image, tolerance in ((smooth(120, 200), 0.6), (noise(120, 200), 2.0)):
        blurred = gaussian_blur(image, [[10, 15, 10 + width, 15 + height]], exact=exact)
        expected = slow_blur(image[region], *kernel)
        assert np.abs(blurred[region] - expected).max() <= tolerance


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(
    ("box", "region", "kernel"),
    [
        ([-30, 10, 50, 110], (slice(10, 110), slice(0, 50)), (41, 51)),  # cut at the left
        ([150, 60, 350, 260], (slice(60, 120), slice(150, 200)), (101, 101)),  # and below
        ([195, 0, 355, 100], (slice(0, 100), slice(195, 200)), (81, 51)),  # five columns are left
        ([199, 30, 399, 32], (slice(30, 32), slice(199, 200)), (101, 1)),  # a single column
        ([20.7, 30.2, 60.7, 70.2], (slice(30, 71), slice(20, 61)), (21, 21)),  # fractions
    ],
)
def test_kernel_comes_from_the_box_and_border_from_the_visible_part(
    box: list[float], region: tuple[slice, slice], kernel: tuple[int, int], exact: bool
) -> None:
    image = noise(120, 200)
    expected = image.copy()
    expected[region] = cv2.GaussianBlur(image[region].copy(), kernel, 0)
    np.testing.assert_array_equal(gaussian_blur(image, [box], exact=True), expected)
    assert largest_difference(gaussian_blur(image, [box], exact=exact), expected) <= 1


def test_exact_is_opencv_per_box_in_label_order() -> None:
    image = noise(200, 200)
    boxes = [[20, 20, 120, 140], [60, 80, 180, 170], [100, 10, 110, 190]]
    expected = image.copy()
    for x1, y1, x2, y2 in boxes:
        kernel = ((x2 - x1) // 2 | 1, (y2 - y1) // 2 | 1)
        expected[y1:y2, x1:x2] = cv2.GaussianBlur(expected[y1:y2, x1:x2].copy(), kernel, 0)
    np.testing.assert_array_equal(gaussian_blur(image, boxes, exact=True), expected)
    assert largest_difference(gaussian_blur(image, boxes), expected) <= len(boxes)
    assert (gaussian_blur(image, boxes[::-1], exact=True) != expected).any()


def test_kernel_factor() -> None:
    image = noise(100, 100)
    for factor, kernel in ((0.25, (15, 11)), (1.0, (61, 41)), (2.5, (151, 101))):
        expected = image.copy()
        expected[10:50, 20:80] = cv2.GaussianBlur(image[10:50, 20:80].copy(), kernel, 0)
        blurred = gaussian_blur(image, [[20, 10, 80, 50]], kernel_factor=factor, exact=True)
        np.testing.assert_array_equal(blurred, expected)
        quick = gaussian_blur(image, [[20, 10, 80, 50]], kernel_factor=factor)
        assert largest_difference(quick, expected) <= 1


def test_a_side_with_rounding_noise_keeps_its_kernel() -> None:
    image = noise(60, 60)
    assert (4.3 + 28) - 4.3 < 28  # and half of it, rounded down, would be 13 instead of 14
    box = [[4.3, 0, 4.3 + 28, 26]]
    expected = image.copy()
    expected[0:26, 4:33] = cv2.GaussianBlur(image[0:26, 4:33].copy(), (15, 13), 0)
    np.testing.assert_array_equal(gaussian_blur(image, box, exact=True), expected)


SIZES = [
    (2, 3),
    (9, 200),
    (200, 9),
    (33, 34),
    (63, 65),
    (64, 64),
    (127, 129),
    (128, 300),
    (257, 96),
]


@pytest.mark.parametrize("make", [noise, smooth, edges])
@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("factor", [0.5, 1.3])
def test_default_is_within_a_grey_level_of_exact(
    make: Callable[[int, int], Pixels], width: int, height: int, factor: float
) -> None:
    image = make(310, 310)
    box = [[5, 6, 5 + width, 6 + height]]
    exact = gaussian_blur(image, box, factor, exact=True)
    assert largest_difference(gaussian_blur(image, box, factor), exact) <= 1


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="checked on x86-64 only"
)
def test_default_equals_exact_to_the_bit() -> None:
    for side in (70, 99, 128, 211, 330):
        image = edges(side, side + 7)
        box = [[0, 0, side + 7, side]]
        np.testing.assert_array_equal(
            gaussian_blur(image, box), gaussian_blur(image, box, exact=True)
        )


def test_default_leaves_an_opencv_with_other_kernels_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, box = noise(150, 150), [[0, 0, 150, 150]]
    monkeypatch.setattr(utils.blur, "_kernel_weights", lambda size: np.zeros(size, dtype=np.int64))
    np.testing.assert_array_equal(gaussian_blur(image, box), gaussian_blur(image, box, exact=True))


@pytest.mark.parametrize("name", ANONYMISERS)
def test_nothing_goes_over_the_edge_of_a_box(name: str) -> None:
    anonymise = ANONYMISERS[name]
    boxes = [[30.5, 20.0, 130.0, 140.2], [150.0, 5.0, 170.0, 20.0]]
    inside = face_mask(boxes, 200, 200).astype(bool)
    image, other = noise(200, 200, seed=1), noise(200, 200, seed=2)
    before = image.copy()
    result = anonymise(image, boxes)
    np.testing.assert_array_equal(image, before)  # the input is left alone
    np.testing.assert_array_equal(result[~inside], image[~inside])
    assert (result[inside] != image[inside]).any(axis=1).mean() > 0.9
    # The same faces in other surroundings come out the same: nothing leaks in.
    other[inside] = image[inside]
    np.testing.assert_array_equal(anonymise(other, boxes)[inside], result[inside])


@pytest.mark.parametrize("name", ANONYMISERS)
@pytest.mark.parametrize(
    "boxes",
    [[], [[5, 5, 6, 40]], [[5, 5, 5, 5]], [[40, 40, 10, 10]], [[70, 5, 90, 20]], [[5, -30, 20, 0]]],
)
def test_boxes_that_are_no_face_change_nothing(name: str, boxes: list[list[float]]) -> None:
    image = noise(60, 60)
    result = ANONYMISERS[name](image, boxes)
    np.testing.assert_array_equal(result, image)
    assert result is not image
    assert face_mask(boxes, 60, 60).sum() == 0


@pytest.mark.parametrize("name", ANONYMISERS)
def test_boxes_without_a_place_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        ANONYMISERS[name](noise(60, 60), [[0, 0, float("nan"), 20]])


def test_mosaic_cells_are_means() -> None:
    image = noise(100, 100)
    result = mosaic(image, [[10, 20, 58, 84]], blocks=8)  # cells of 6 x 8 pixels
    for row in range(8):
        for column in range(8):
            y, x = 20 + 8 * row, 10 + 6 * column
            cell = (slice(y, y + 8), slice(x, x + 6))
            assert len(np.unique(result[cell].reshape(-1, 3), axis=0)) == 1
            mean = image[cell].astype(float).mean(axis=(0, 1))
            assert np.abs(result[y, x] - mean).max() <= 1


@pytest.mark.parametrize(("width", "height"), [(2, 2), (5, 9), (3, 40), (15, 13)])
def test_mosaic_of_a_small_face_has_no_cells_of_one_pixel(width: int, height: int) -> None:
    result = mosaic(noise(50, 50), [[4, 4, 4 + width, 4 + height]])
    colours = np.unique(result[4 : 4 + height, 4 : 4 + width].reshape(-1, 3), axis=0)
    assert len(colours) <= (width // 2) * (height // 2)


def test_black() -> None:
    result = black(np.full((50, 50, 3), 9, dtype=np.uint8), [[4.5, 5.0, 20.0, 30.1]])
    assert not result[5:31, 4:20].any()
    assert (result == 0).sum() == 26 * 16 * 3


def test_face_mask_covers_what_the_box_touches() -> None:
    mask = face_mask(
        [[4.5, 5.0, 20.0, 30.1], [45.0, -10.0, 80.0, 3.0], [7.0, 7.0, 7.5, 20.0]], 50, 60
    )
    expected = np.zeros((50, 60), dtype=np.uint8)
    expected[5:31, 4:20] = 1
    expected[0:3, 45:60] = 1
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.skipif(not WIDERFACE.is_dir(), reason=f"needs WIDER FACE photos in {WIDERFACE}")
def test_default_is_within_a_grey_level_of_exact_on_photos() -> None:
    labelled = [
        photo
        for photo in read_labels(find_labels(WIDERFACE, "val"))
        if len(photo.boxes) < 4 and (photo.boxes[:, 2:] - photo.boxes[:, :2]).max(initial=0) > 150
    ]
    assert len(labelled) >= 5
    for photo in labelled[:5]:
        pixels = read_photo(photo_path(WIDERFACE / "val" / "images", photo.path)).pixels
        quick, exact = (gaussian_blur(pixels, photo.boxes, exact=flag) for flag in (False, True))
        assert (exact != pixels).any()
        assert largest_difference(quick, exact) <= 1
