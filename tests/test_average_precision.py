from __future__ import annotations

import numpy as np
import pytest

from utils.average_precision import average_precision

NONE = (np.zeros((0, 4)), np.zeros(0))
NO_FACE = np.zeros((0, 4))


def face(x: float, side: float = 10.0) -> list[float]:
    return [x, 0.0, x + side, side]


def found(*pairs: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Detections as (x of a face, score)."""
    return np.array([face(x) for x, _ in pairs]), np.array([score for _, score in pairs])


def boxes(*places: float) -> np.ndarray:
    return np.array([face(x) for x in places])


def no(count: int) -> np.ndarray:
    return np.zeros(count, dtype=bool)


def one_photo(
    detections: tuple[np.ndarray, np.ndarray], faces: np.ndarray, ignored: np.ndarray | None = None
) -> float:
    return average_precision(
        [detections], [faces], [no(len(faces)) if ignored is None else ignored]
    )


def test_all_found_and_nothing_else() -> None:
    assert one_photo(found((0, 0.9), (100, 0.8)), boxes(0, 100)) == 1.0


def test_order_of_the_scores_counts() -> None:
    # right, wrong, right: precision 1 up to recall 1/2, then 2/3 up to recall 1.
    assert one_photo(found((0, 0.9), (50, 0.5), (100, 0.2)), boxes(0, 100)) == pytest.approx(5 / 6)
    # wrong, right, right: at best 2/3, at every recall (the envelope lifts the 1/2 before it).
    assert one_photo(found((0, 0.4), (50, 0.5), (100, 0.2)), boxes(0, 100)) == pytest.approx(2 / 3)
    # A wrong one below all right ones costs nothing; a face that is missed costs its share.
    assert one_photo(found((0, 0.9), (100, 0.8), (50, 0.1)), boxes(0, 100)) == 1.0
    assert one_photo(found((0, 0.9), (50, 0.1)), boxes(0, 100)) == 0.5


def test_a_second_detection_of_a_face_is_wrong() -> None:
    # right, double, right: as right, wrong, right.
    assert one_photo(found((0, 0.9), (1, 0.8), (100, 0.7)), boxes(0, 100)) == pytest.approx(5 / 6)
    # Two faces close together are two: the second detection takes the free one.
    twins = np.array([face(0), face(2)])
    assert one_photo(found((0.5, 0.9), (0.6, 0.8)), twins) == 1.0


def test_the_better_overlap_is_taken() -> None:
    # 1.9 is nearer to the face at 2, so that the one at 0 is left for the detection at -1.
    twins = np.array([face(0), face(2)])
    assert one_photo(found((1.9, 0.9), (-1, 0.8)), twins) == 1.0


def test_overlap_of_a_half() -> None:
    wide = np.array([[0.0, 0.0, 20.0, 10.0]])
    half = (np.array([[0.0, 0.0, 10.0, 10.0]]), np.array([0.9]))
    less = (np.array([[0.0, 0.0, 9.9, 10.0]]), np.array([0.9]))
    assert one_photo(half, wide) == 1.0
    assert one_photo(less, wide) == 0.0


def test_ignored_faces_count_neither_way() -> None:
    ignored = np.array([False, True, False])
    everything = found((100, 0.9), (0, 0.8), (101, 0.7), (200, 0.6))
    assert one_photo(everything, boxes(0, 100, 200), ignored) == 1.0  # twice on the ignored one
    assert one_photo(found((0, 0.8), (200, 0.6)), boxes(0, 100, 200), ignored) == 1.0
    # A face that counts is preferred to an ignored one, even where it overlaps less.
    twins = np.array([face(0), face(2)])
    assert one_photo(found((1.8, 0.9)), twins, np.array([False, True])) == 1.0
    # An ignored face does not excuse what lies elsewhere.
    assert one_photo(found((50, 0.9), (0, 0.8)), boxes(0, 100), np.array([False, True])) == 0.5


def test_nothing_found() -> None:
    assert one_photo(NONE, boxes(0)) == 0.0
    assert average_precision([NONE, NONE], [boxes(0), NO_FACE], [no(1), no(0)]) == 0.0


def test_photos_are_ranked_together() -> None:
    # By score: right (second photo), wrong (third, which has no face), right (first).
    detections = [found((0, 0.3)), found((0, 0.9)), found((0, 0.5))]
    faces, ignored = [boxes(0), boxes(0), NO_FACE], [no(1), no(1), no(0)]
    assert average_precision(detections, faces, ignored) == pytest.approx(5 / 6)
    # A detection never takes a face of another photo.
    assert average_precision([NONE, found((0, 0.9))], [boxes(0), NO_FACE], [no(1), no(0)]) == 0.0


def test_equal_scores_keep_their_order() -> None:
    right_first = found((0, 0.5), (50, 0.5), (100, 0.5))
    wrong_first = found((50, 0.5), (0, 0.5), (100, 0.5))
    assert one_photo(right_first, boxes(0, 100)) == pytest.approx(5 / 6)
    assert one_photo(wrong_first, boxes(0, 100)) == pytest.approx(2 / 3)


def test_without_a_face_that_counts_there_is_no_figure() -> None:
    with pytest.raises(ValueError, match="at least one face"):
        one_photo(found((0, 0.5)), boxes(0), np.array([True]))
    with pytest.raises(ValueError, match="at least one face"):
        one_photo(found((0, 0.5)), NO_FACE)


def test_inputs_are_left_alone() -> None:
    ignored = np.array([False, True])
    one_photo(found((0, 0.5), (100, 0.4)), boxes(0, 100), ignored)
    assert ignored.tolist() == [False, True]
