"""Plain anonymisation inside face boxes: Gaussian blur, mosaic, black; and the face mask. Beside
them, what a sceptic would try in DartBlur's place: ellipses that fade, decoys that are no face.

Images are uint8 `[H, W, 3]`, boxes `(x1, y1, x2, y2)` in pixels, `[N, 4]`. A box covers every pixel
that it touches. Each function returns a new array and changes nothing outside the boxes; boxes of
one pixel or less and boxes outside the image are passed over.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from utils.boxes import Boxes, as_boxes, pixel_boxes, usable

Pixels = NDArray[np.uint8]

FEATHER = 0.25
"""Share of an ellipse's radius over which it fades."""

_DECOY_TRIES = 50

# OpenCV's 8-bit Gaussian kernels are whole numbers of 1/256.
_ONE = 256

# Matrix products take over from OpenCV where the sum of the two kernel sides reaches this length:
# below it the two are about equally fast, and building the matrices would cost more than it saves.
_MATRIX_KERNELS = 64

# Rows of a band matrix. Measured flat between 32 and 128.
_BAND_ROWS = 64


class _Band(NamedTuple):
    """Rows `start:stop` of a blur matrix; outside the columns `first:last` they are zero."""

    start: int
    stop: int
    first: int
    last: int
    weights: NDArray[np.float32]


def gaussian_blur(
    image: Pixels, boxes: ArrayLike, kernel_factor: float = 0.5, exact: bool = False
) -> Pixels:
    """Blur each usable box by itself, one after the other, so that overlaps are blurred twice.

    The kernel is `(floor(w * kernel_factor) | 1, floor(h * kernel_factor) | 1)` for the box's own
    width and height, even where the image cuts the box, with OpenCV's automatic sigma. The border
    is that of the box's own pixels, mirrored: nothing outside the box enters the blur.

    `exact` calls `cv2.GaussianBlur` for every box. Otherwise large kernels are applied as matrix
    products, about ten times faster and equal to the bit with OpenCV 4.9 and 5.0 on x86-64:
    OpenCV blurs 8-bit images with kernels of whole numbers that sum to 256 and rounds once, half
    up, at the end; all sums stay within `255 * 256 * 256 < 2**24`, where float32 is exact in any
    order of summation.
    """
    result = image.copy()
    for region, (width, height) in _regions(result, boxes):
        kernel = (_kernel_side(width, kernel_factor), _kernel_side(height, kernel_factor))
        if not exact and sum(kernel) >= _MATRIX_KERNELS and all(map(_is_whole_numbered, kernel)):
            region[:] = _blur_by_matrices(region, kernel)
        else:
            region[:] = cv2.GaussianBlur(region.copy(), kernel, 0)
    return result


def mosaic(image: Pixels, boxes: ArrayLike, blocks: int = 8) -> Pixels:
    """Replace each usable box by `blocks` × `blocks` cells of their mean colour.

    A side of less than `2 * blocks` pixels gets fewer cells, each at least two pixels wide: cells
    of one pixel would hide nothing.
    """
    result = image.copy()
    for region, _ in _regions(result, boxes):
        height, width = region.shape[:2]
        cells = (min(blocks, max(1, width // 2)), min(blocks, max(1, height // 2)))
        means = cv2.resize(region.copy(), cells, interpolation=cv2.INTER_AREA)
        region[:] = cv2.resize(means, (width, height), interpolation=cv2.INTER_NEAREST)
    return result


def black(image: Pixels, boxes: ArrayLike) -> Pixels:
    """Fill each usable box with black."""
    result = image.copy()
    for region, _ in _regions(result, boxes):
        region[:] = 0
    return result


def face_mask(boxes: ArrayLike, height: int, width: int) -> NDArray[np.uint8]:
    """Return uint8 `[height, width]`: 1 on every pixel that a usable box touches, 0 elsewhere."""
    mask = np.zeros((height, width), dtype=np.uint8)
    for region, _ in _regions(mask, boxes):
        region[:] = 1
    return mask


def blend_in_ellipses(
    image: Pixels, hidden: Pixels, boxes: ArrayLike, feather: float = FEATHER
) -> Pixels:
    """`hidden` in the ellipse inscribed in each usable box, fading into `image` towards its edge.

    Images uint8 `[H, W, 3]`. The outermost `feather` of the radius fades; the corners of the boxes
    are those of `image`. Where ellipses overlap, the one that hides more counts.
    """
    array = as_boxes(boxes)
    array = array[usable(array)]
    height, width = image.shape[:2]
    weights = np.zeros((height, width, 1))
    corners = pixel_boxes(array, height, width).tolist()
    for box, (x1, y1, x2, y2) in zip(array, corners, strict=True):
        centre, radii = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
        across = (np.arange(x1, x2) + 0.5 - centre[0]) / radii[0]
        down = (np.arange(y1, y2) + 0.5 - centre[1]) / radii[1]
        ramp = ((1 - np.hypot(across[None], down[:, None])) / feather).clip(0, 1)
        region = weights[y1:y2, x1:x2, 0]
        np.maximum(region, ramp * ramp * (3 - 2 * ramp), out=region)  # no edge at either end
    return (weights * hidden + (1 - weights) * image).round().astype(np.uint8)


def decoy_boxes(boxes: ArrayLike, height: int, width: int, rng: np.random.Generator) -> Boxes:
    """A random box of the same size for each usable box of an image, on none of them.

    Decoys, `[N, 4]` and whole pixels, keep off each other too. One that finds no place shrinks by a
    fifth until it does; one that would come down to a pixel is left out.
    """
    array = as_boxes(boxes)
    corners = pixel_boxes(array[usable(array)], height, width)
    taken = face_mask(array, height, width)
    decoys = []
    sizes = (corners[:, 2:] - corners[:, :2]).tolist()
    for size in sorted(sizes, key=lambda sides: -sides[0] * sides[1]):  # the large ones need room
        box_width, box_height = size
        while min(box_width, box_height) > 1:
            place = _free_place(taken, box_width, box_height, rng)
            if place is not None:
                x, y = place
                taken[y : y + box_height, x : x + box_width] = 1
                decoys.append((x, y, x + box_width, y + box_height))
                break
            box_width, box_height = int(box_width * 0.8), int(box_height * 0.8)
    return as_boxes(decoys)


def _free_place(
    taken: NDArray[np.uint8], width: int, height: int, rng: np.random.Generator
) -> tuple[int, int] | None:
    """A random (x, y) where a box fits and nothing is taken; None if no draw finds one."""
    for _ in range(_DECOY_TRIES):
        x = int(rng.integers(0, taken.shape[1] - width + 1))
        y = int(rng.integers(0, taken.shape[0] - height + 1))
        if not taken[y : y + height, x : x + width].any():
            return x, y
    return None


def _regions(image: Pixels, boxes: ArrayLike) -> Iterator[tuple[Pixels, tuple[float, float]]]:
    """Yield a view of `image` for each usable box inside it, with the box's own (width, height)."""
    array = as_boxes(boxes)
    array = array[usable(array)]
    height, width = image.shape[:2]
    corners = pixel_boxes(array, height, width).tolist()
    sides = (array[:, 2:] - array[:, :2]).tolist()
    for (x1, y1, x2, y2), (box_width, box_height) in zip(corners, sides, strict=True):
        if x2 > x1 and y2 > y1:
            yield image[y1:y2, x1:x2], (box_width, box_height)


def _kernel_side(side: float, factor: float) -> int:
    # A side is x2 - x1, where a fraction may have lost its last bits.
    return int(side * factor + 1e-6) | 1


@lru_cache(maxsize=1024)
def _kernel_weights(size: int) -> NDArray[np.int64]:
    """OpenCV's own kernel, `[size]` in 1/256: its blur of one bright pixel in a dark row."""
    row = np.zeros((1, 2 * size + 1), dtype=np.uint8)
    row[0, size] = 255
    blurred = cv2.GaussianBlur(row, (size, 1), 0)[0]
    return blurred[size - size // 2 : size + size // 2 + 1].astype(np.int64)


def _is_whole_numbered(size: int) -> bool:
    """Tell whether the kernel was read in full; an OpenCV with finer kernels is left to itself.

    (A kernel of size 1 is read as 255: its row is not blurred at all.)
    """
    return size > 1 and int(_kernel_weights(size).sum()) == _ONE


@lru_cache(maxsize=128)
def _blur_bands(length: int, size: int) -> tuple[_Band, ...]:
    """Blur of `length` pixels in a line by a kernel of `size`, mirrored ends, as a band matrix."""
    weights = _kernel_weights(size)
    taps = np.flatnonzero(weights)  # about half of a large kernel's weights are below 1/256
    bands = []
    for start in range(0, length, _BAND_ROWS):
        stop = min(start + _BAND_ROWS, length)
        rows = np.arange(stop - start)[:, None]
        columns = _mirrored(start + rows + taps - size // 2, length)
        cells = np.bincount(
            (rows * length + columns).ravel(),
            weights=np.broadcast_to(weights[taps], columns.shape).ravel(),
            minlength=(stop - start) * length,
        ).reshape(stop - start, length)
        used = np.flatnonzero(cells.any(axis=0))
        first, last = int(used[0]), int(used[-1]) + 1
        band = np.ascontiguousarray(cells[:, first:last], dtype=np.float32)
        bands.append(_Band(start, stop, first, last, band))
    return tuple(bands)


def _mirrored(positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Fold positions beyond the ends back, the end pixel not repeated (OpenCV's REFLECT_101)."""
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * (length - 1)
    folded = np.abs(positions) % period
    return np.minimum(folded, period - folded)


def _blur_by_matrices(region: Pixels, kernel: tuple[int, int]) -> Pixels:
    """Blur uint8 `[h, w, 3]` with `kernel` (width, height) by band matrices."""
    height, width, channels = region.shape
    planes = np.empty((channels, height, width), dtype=np.float32)
    planes[:] = region.transpose(2, 0, 1)
    across = np.empty_like(planes)  # blurred along x
    lines, blurred_lines = planes.reshape(-1, width), across.reshape(-1, width)
    for band in _blur_bands(width, kernel[0]):
        np.matmul(
            lines[:, band.first : band.last],
            band.weights.T,
            out=blurred_lines[:, band.start : band.stop],
        )
    sums = planes  # blurred along y too, in 1/65536; the input is not needed any more
    for band in _blur_bands(height, kernel[1]):
        np.matmul(
            band.weights,
            across[:, band.first : band.last],
            out=sums[:, band.start : band.stop],
        )
    sums += _ONE * _ONE / 2
    sums /= _ONE * _ONE
    return sums.transpose(1, 2, 0).astype(np.uint8)  # truncates: half up, as OpenCV does
