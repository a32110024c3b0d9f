import numpy as np
import pytest
from numpy.typing import ArrayLike

from utils.boxes import as_boxes, enlarge, pixel_boxes, usable, xywh_to_xyxy, xyxy_to_xywh


def test_both_conversions() -> None:
    xywh = [[3.0, 4.0, 10.0, 20.0], [0.5, -2.0, 1.25, 0.0]]
    xyxy = xywh_to_xyxy(xywh)
    assert xyxy.tolist() == [[3, 4, 13, 24], [0.5, -2, 1.75, -2]]
    assert xyxy_to_xywh(xyxy).tolist() == xywh


@pytest.mark.parametrize(
    ("size", "expected"),
    [((2, 2), True), ((1.5, 1.01), True), ((1, 5), False), ((5, 1), False), ((0, 0), False)],
)
def test_usable_wants_both_sides_above_one_pixel(size: tuple[float, float], expected: bool) -> None:
    assert usable([[7, 8, 7 + size[0], 8 + size[1]]]).tolist() == [expected]


def test_turned_boxes_are_not_usable() -> None:
    assert usable([[10, 10, 4, 20], [10, 10, 20, 4]]).tolist() == [False, False]


def test_pixel_boxes_cover_the_box_and_stay_in_the_image() -> None:
    boxes = [
        [2.9, 3.1, 7.1, 8.0],  # rounded outwards
        [-5, -0.5, 3, 200.5],  # clipped, height is 100
        [49.5, 99.5, 60, 120],  # last pixel
        [-1e300, -1e300, 1e300, 1e300],
    ]
    expected = [[2, 3, 8, 8], [0, 0, 3, 100], [49, 99, 50, 100], [0, 0, 50, 100]]
    pixels = pixel_boxes(boxes, height=100, width=50)
    assert pixels.dtype == np.int64
    assert pixels.tolist() == expected


@pytest.mark.parametrize(
    "box", [[60, 5, 70, 9], [-9, 5, -1, 9], [5, 100, 9, 120], [5, -9, 9, 0], [50, 0, 51, 5]]
)
def test_a_box_outside_becomes_empty(box: list[float]) -> None:
    x1, y1, x2, y2 = pixel_boxes([box], height=100, width=50)[0]
    assert x2 <= x1 or y2 <= y1


def test_enlarge_keeps_the_centre() -> None:
    assert enlarge([[10, 20, 30, 60]], 1.5).tolist() == [[5, 10, 35, 70]]
    assert enlarge([[10, 20, 30, 60]], 0.5).tolist() == [[15, 30, 25, 50]]


def test_no_boxes() -> None:
    nothing: list[ArrayLike] = [[], np.zeros((0, 4))]
    for empty in nothing:
        assert xywh_to_xyxy(empty).shape == (0, 4)
        assert xyxy_to_xywh(empty).shape == (0, 4)
        assert usable(empty).shape == (0,)
        assert pixel_boxes(empty, 10, 10).shape == (0, 4)
        assert enlarge(empty, 2.0).shape == (0, 4)


@pytest.mark.parametrize("bad", [[1, 2, 3, 4], [[1, 2, 3]], [[[1, 2, 3, 4]]]])
def test_another_shape_is_refused(bad: ArrayLike) -> None:
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        as_boxes(bad)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        as_boxes([[0, 0, bad, 5]])
