import numpy as np
import pytest
from numpy.typing import ArrayLike

from utils.blur import face_mask
from utils.boxes import as_boxes, enlarge, pixel_boxes, unite, usable, xywh_to_xyxy, xyxy_to_xywh


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


def test_a_union_keeps_the_order_and_draws_no_face_twice() -> None:
    labelled = [[50, 50, 60, 60], [10, 10, 30, 30], [70, 70, 90, 90], [0, 0, 5, 5]]
    found = [
        [9, 9, 31, 32],  # around the second: takes its place
        [70, 70, 90, 90],  # the third once more: the labelled one stays
        [75, 72, 85, 90],  # in the third
        [54, 50, 64, 60],  # overlaps the first: both stay
        [200, 200, 210, 210],  # new
    ]
    boxes, places = unite(labelled, found)
    assert boxes.tolist() == [labelled[0], labelled[2], labelled[3], found[0], found[3], found[4]]
    assert places.tolist() == [-1, -1, -1, 0, 3, 4]


def test_a_union_with_nothing_is_the_other() -> None:
    some = [[1, 2, 3, 4], [1, 2, 3, 4], [0, 0, 9, 9]]  # of one kind: all stay
    assert unite(some, [])[0].tolist() == some
    assert unite([], some)[0].tolist() == some
    assert unite([], some)[1].tolist() == [0, 1, 2]
    assert unite([], [])[0].shape == (0, 4)


def test_a_union_covers_what_its_parts_cover() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        parts = []
        for _ in range(2):
            starts = rng.integers(0, 12, (rng.integers(0, 6), 2))
            parts.append(np.hstack([starts, starts + rng.integers(0, 8, starts.shape)]))
        boxes, places = unite(*parts)
        both = np.concatenate([as_boxes(part) for part in parts])
        np.testing.assert_array_equal(face_mask(boxes, 20, 20), face_mask(both, 20, 20))
        np.testing.assert_array_equal(boxes[places >= 0], as_boxes(parts[1])[places[places >= 0]])
