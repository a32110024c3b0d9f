"""Box geometry in numpy.

Boxes are float64 `[N, 4]` as `(x1, y1, x2, y2)` in pixels, `x2 = x1 + width`. `(x, y, w, h)` is
known to the label parser alone. No box at all is an array `[0, 4]`; an empty list is taken for it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Boxes = NDArray[np.float64]

# Faces of one pixel or less are not blurred and are no face to a detector (shared rule of the
# blur, the masks and the training labels).
MIN_SIDE = 1.0


def as_boxes(boxes: ArrayLike) -> Boxes:
    """Return `boxes` as float64 `[N, 4]`. Raises ValueError for another shape, NaN or infinity."""
    array = np.asarray(boxes, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes must have the shape [N, 4], not {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError("boxes must be finite numbers")
    return array


def xywh_to_xyxy(boxes: ArrayLike) -> Boxes:
    """`(x, y, w, h)` to `(x1, y1, x2, y2)`; `[N, 4]` both."""
    array = as_boxes(boxes)
    return np.concatenate([array[:, :2], array[:, :2] + array[:, 2:]], axis=1)


def xyxy_to_xywh(boxes: ArrayLike) -> Boxes:
    """`(x1, y1, x2, y2)` to `(x, y, w, h)`; `[N, 4]` both."""
    array = as_boxes(boxes)
    return np.concatenate([array[:, :2], array[:, 2:] - array[:, :2]], axis=1)


def usable(boxes: ArrayLike) -> NDArray[np.bool_]:
    """Tell which boxes (xyxy, `[N, 4]`) count as faces: both sides above one pixel. `[N]`."""
    sides = xyxy_to_xywh(boxes)[:, 2:]
    return (sides[:, 0] > MIN_SIDE) & (sides[:, 1] > MIN_SIDE)


def pixel_boxes(boxes: ArrayLike, height: int, width: int) -> NDArray[np.int64]:
    """Round boxes outwards to whole pixels and clip them to an image of `height` × `width`.

    The start is floored and the end is ceiled, so that no rim of a face is left out. The result,
    int64 `[N, 4]`, slices the image as `image[y1:y2, x1:x2]`. A box outside the image comes back
    empty: `x2 <= x1` or `y2 <= y1`.
    """
    array = as_boxes(boxes)
    starts, ends = np.floor(array[:, :2]), np.ceil(array[:, 2:])
    rounded = np.concatenate([starts, ends], axis=1)
    # Clipped as floats: a huge number would overflow the integer.
    limits = np.array([width, height, width, height], dtype=np.float64)
    return np.minimum(np.maximum(rounded, 0.0), limits).astype(np.int64)


def outside_message(boxes: ArrayLike, height: int, width: int) -> str | None:
    """Say which box (xyxy, `[N, 4]`) lies wholly outside an image; None if none does."""
    array = as_boxes(boxes)
    corners = pixel_boxes(array, height, width)
    outside = (corners[:, 2:] <= corners[:, :2]).any(axis=1)
    if not outside.any():
        return None
    box = " ".join(f"{value:g}" for value in xyxy_to_xywh(array[outside])[0])
    return (
        f"the face box {box} (x y w h) lies outside this photo of {width} x {height} pixels; "
        "check that boxes and photos belong together"
    )


def enlarge(boxes: ArrayLike, factor: float) -> Boxes:
    """Multiply both sides of each box (xyxy, `[N, 4]`) by `factor` about the box's centre."""
    array = as_boxes(boxes)
    centres = (array[:, :2] + array[:, 2:]) / 2
    halves = (array[:, 2:] - array[:, :2]) / 2 * factor
    return np.concatenate([centres - halves, centres + halves], axis=1)


def unite(labelled: ArrayLike, found: ArrayLike) -> tuple[Boxes, NDArray[np.int64]]:
    """The union of a photo's labelled boxes and those a detector found (xyxy, `[N, 4]`, `[M, 4]`).

    Boxes are blurred one after the other, so that overlaps are blurred twice, and the order
    counts. Here it is: the labelled boxes in the order of their file, as without a detector, then
    the found ones, best first. A box that lies in one of the other kind is left out: the larger
    box hides it, with a kernel no smaller, and the face is drawn once and not twice; of two equal
    boxes the labelled one stays. Boxes that overlap otherwise all stay.

    Returns the boxes `[K, 4]` and, int64 `[K]`, their places in `found`, -1 for labelled ones.
    """
    first, second = as_boxes(labelled), as_boxes(found)
    places = np.arange(len(second))[~_inside(second, first)]
    first = first[~_inside(first, second[places])]
    boxes = np.concatenate([first, second[places]])
    return boxes, np.concatenate([np.full(len(first), -1), places])


def _inside(inner: Boxes, outer: Boxes) -> NDArray[np.bool_]:
    """Tell which boxes of `inner` lie in one of `outer`, edges included. `[N]`."""
    starts = np.all(inner[:, None, :2] >= outer[None, :, :2], axis=2)  # [N, M]
    ends = np.all(inner[:, None, 2:] <= outer[None, :, 2:], axis=2)
    return np.any(starts & ends, axis=1)
