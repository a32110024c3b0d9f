from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat  # type: ignore[import-untyped]

from tests.official_lists import Listed, write_lists
from utils.average_precision import average_precision
from utils.prediction_files import Detections
from utils.wider_protocol import (
    DIFFICULTIES,
    PhotoFaces,
    PrecisionRecall,
    ProtocolError,
    photos_present,
    read_ground_truth,
    score_predictions,
)
from utils.widerface import read_labels


def face(x: float) -> list[float]:
    return [x, 0.0, x + 10, 10.0]


def found(*pairs: tuple[float, float]) -> Detections:
    """Detections as (x of a face, score)."""
    boxes = np.array([face(x) for x, _ in pairs]).reshape(-1, 4)
    return boxes, np.array([score for _, score in pairs], dtype=np.float64)


def faces(*places: float, ignored: tuple[float, ...] = ()) -> PhotoFaces:
    """Faces at these places; `ignored` of them are counted by no set."""
    boxes = np.array([face(x) for x in places]).reshape(-1, 4)
    counted = np.array([x not in ignored for x in places], dtype=bool)
    return PhotoFaces(boxes, dict.fromkeys(DIFFICULTIES, counted))


def ap(*photos: tuple[Detections | None, PhotoFaces]) -> float:
    """AP of photos, each with its detections; None for a photo without an entry."""
    truth = {f"e/{index}.jpg": photo for index, (_, photo) in enumerate(photos)}
    predictions = {f"e/{i}.jpg": given for i, (given, _) in enumerate(photos) if given is not None}
    curves = score_predictions(predictions, truth)
    assert len({curve.ap for curve in curves.values() if curve.faces}) <= 1
    return curves["hard"].ap


def test_order_of_the_scores_counts() -> None:
    assert ap((found((0, 0.9), (100, 0.8)), faces(0, 100))) == 1.0
    # right, wrong, right: precision 1 up to recall 1/2, then 2/3 up to recall 1.
    photo = faces(0, 100)
    assert ap((found((0, 0.9), (50, 0.5), (100, 0.2)), photo)) == pytest.approx(5 / 6)
    # wrong, right, right: at best 2/3, at every recall.
    assert ap((found((0, 0.4), (50, 0.5), (100, 0.2)), photo)) == pytest.approx(2 / 3)
    assert ap((found((0, 0.9), (50, 0.1)), photo)) == 0.5  # one missed


def test_the_order_in_the_file_does_not_count() -> None:
    """Of two hits the one with the higher score is right, wherever it stands."""
    assert ap((found((1, 0.3), (50, 0.6), (0, 0.9)), faces(0))) == 1.0


def test_a_second_detection_of_a_face_is_wrong() -> None:
    detections = found((0, 0.9), (1, 0.8), (100, 0.7))  # as right, wrong, right
    assert ap((detections, faces(0, 100))) == pytest.approx(5 / 6)


def test_a_detection_does_not_turn_to_a_face_that_is_free() -> None:
    """Both overlap the face at 0 most, and the one at 2 by more than a half."""
    detections, twins = found((0.5, 0.9), (0.6, 0.8)), faces(0, 2)
    assert ap((detections, twins)) == 0.5
    # The common rule would give the second detection the face that is left.
    assert average_precision([detections], [twins.boxes], [np.zeros(2, dtype=bool)]) == 1.0


def test_hits_on_ignored_faces_are_left_out() -> None:
    detections = found((100, 0.9), (0, 0.8), (101, 0.7), (200, 0.6))
    assert ap((detections, faces(0, 100, 200, ignored=(100,)))) == 1.0
    # They do not excuse what lies elsewhere.
    assert ap((found((50, 0.9), (0, 0.8)), faces(0, 100, ignored=(100,)))) == 0.5


def test_an_ignored_face_that_overlaps_more_takes_the_detection() -> None:
    twins = faces(0, 2, ignored=(2,))
    assert ap((found((1.8, 0.9)), twins)) == 0.0
    assert ap((found((0.2, 0.9)), twins)) == 1.0


def test_no_prediction() -> None:
    nothing = found()
    right = found((0, 0.9), (50, 0.1))
    for absent in (nothing, None):
        assert ap((absent, faces(0))) == 0.0
        assert ap((right, faces(0)), (absent, faces(0))) == 0.5
    curve = score_predictions({}, {"e/0.jpg": faces(0, 100)})["easy"]
    assert curve.faces == 2
    assert not curve.recall.any()
    assert not curve.precision.any()


def test_no_face() -> None:
    """Wrong detections count, but not on photos without any labelled face."""
    right = (found((0, 0.5)), faces(0))
    assert ap(right, (found((0, 0.9), (50, 0.8)), faces())) == 1.0
    assert ap(right, (found((50, 0.9)), faces(0, ignored=(0,)))) == 0.5
    for photo in (faces(), faces(0, ignored=(0,))):
        curve = score_predictions({"e/0.jpg": found((0, 0.9))}, {"e/0.jpg": photo})["hard"]
        assert math.isnan(curve.ap)
        assert curve.faces == 0


def test_equal_scores() -> None:
    """They pass a threshold together, whatever their order: no point of the curve lies between."""
    for pairs in (((0, 0.5), (50, 0.5)), ((50, 0.5), (0, 0.5))):
        assert ap((found(*pairs), faces(0))) == 0.5  # all equal: one point
        # (right, wrong) together, then nothing: precision 1/2 at recall 1.
        assert ap((found(*pairs, (80, 0.1)), faces(0))) == 0.5
    # Twice one face with one score: one is right, one is wrong.
    assert ap((found((0, 0.5), (1, 0.5), (80, 0.1)), faces(0))) == 0.5


def test_there_are_1000_thresholds() -> None:
    lowest = (80.0, 0.0)
    # Both pass the first threshold, 0.999; apart, the right one would have had precision 1.
    assert ap((found((0, 1.0), (50, 0.9995), lowest), faces(0))) == 0.5
    assert ap((found((0, 1.0), (50, 0.9985), lowest), faces(0))) == 1.0
    curve = score_predictions(
        {"e/0.jpg": found((0, 1.0), (50, 0.25), lowest)}, {"e/0.jpg": faces(0)}
    )["easy"]
    assert curve.precision.shape == curve.recall.shape == (1000,)
    # Thresholds fall from 0.999 to 0: 0.25 is the 750th, and passed by a score of 0.25.
    np.testing.assert_array_equal(curve.precision[[0, 748, 749, 998]], [1, 1, 0.5, 0.5])
    assert curve.precision[999] == pytest.approx(1 / 3)


def test_scores_are_stretched_over_the_whole_set() -> None:
    close = (found((0, 0.6003), (50, 0.6001)), faces(0))
    assert ap(close) == 1.0
    # Another photo spans 0 to 1: now both lie between two thresholds, even if it has no face.
    assert ap(close, (found((0, 0.0), (0, 1.0)), faces())) == 0.5
    # The range itself means nothing: logits serve as well.
    logits = found((0, -3.0), (50, -20.0), (100, -25.0))
    assert ap((logits, faces(0, 100))) == pytest.approx(5 / 6)


def test_boxes_are_one_pixel_larger_than_written() -> None:
    """11 of 11 columns, 5.5 of 11 rows: an IoU of a half; 4.5 of 10 without the pixel."""
    half = np.array([[0, 0, 10, 4.5]]), np.array([0.9])
    less = np.array([[0, 0, 10, 4.4]]), np.array([0.9])
    assert ap((half, faces(0))) == 1.0
    assert ap((less, faces(0))) == 0.0


def test_boxes_far_apart_do_not_overlap() -> None:
    """Right of it and below by 9.5 px: two negative sides must not make a positive overlap."""
    away = np.array([[20.5, 20.5, 30.5, 30.5]])
    assert ap(((away, np.array([0.5])), faces(0))) == 0.0


def test_each_set_counts_its_own_faces() -> None:
    counted = {
        "easy": np.array([True, False]),
        "medium": np.array([False, False]),
        "hard": np.array([True, True]),
    }
    truth = {"e/0.jpg": PhotoFaces(faces(0, 100).boxes, counted)}
    curves = score_predictions({"e/0.jpg": found((0, 0.9), (50, 0.1))}, truth)
    assert {name: curve.faces for name, curve in curves.items()} == {
        "easy": 1,
        "medium": 0,
        "hard": 2,
    }
    assert (curves["easy"].ap, curves["hard"].ap) == (1.0, 0.5)
    assert math.isnan(curves["medium"].ap)


def test_predictions_of_other_photos_are_refused() -> None:
    predictions = {"e/0.jpg": found((0, 0.9)), "e/1.jpg": found((0, 0.9))}
    with pytest.raises(ProtocolError, match=r"1 photos that are not scored, first e/1\.jpg"):
        score_predictions(predictions, {"e/0.jpg": faces(0)})


def literal_curve(
    predictions: dict[str, Detections], truth: dict[str, PhotoFaces], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall by the book: a detection at a time, a threshold at a time."""
    every = [score for _, scores in predictions.values() for score in scores.tolist()]
    low, high = min(every), max(every)
    passed, hit = [0] * 1000, [0] * 1000
    for path, photo in truth.items():
        boxes, scores = predictions[path]
        rows = sorted(zip(scores.tolist(), boxes.tolist(), strict=True), key=lambda row: -row[0])
        taken: set[int] = set()
        state = []  # of each detection: score, whether it is judged, faces found by then
        for score, (x1, y1, x2, y2) in rows:
            best, best_iou = -1, 0.0
            for index, (u1, v1, u2, v2) in enumerate(photo.boxes.tolist()):
                width = min(x2, u2) - max(x1, u1) + 1
                height = min(y2, v2) - max(y1, v1) + 1
                if width > 0 and height > 0:
                    both = (x2 - x1 + 1) * (y2 - y1 + 1) + (u2 - u1 + 1) * (v2 - v1 + 1)
                    iou = width * height / (both - width * height)
                    if iou > best_iou:
                        best, best_iou = index, iou
            is_hit = best_iou >= 0.5
            is_left_out = is_hit and not photo.counted[name][best]
            if is_hit and not is_left_out:
                taken.add(best)
            state.append(((score - low) / (high - low), not is_left_out, len(taken)))
        if len(photo.boxes) == 0:
            continue
        for step in range(1000):
            reached = [row for row in state if row[0] >= 1 - (step + 1) / 1000]
            passed[step] += sum(is_judged for _, is_judged, _ in reached)
            hit[step] += reached[-1][2] if reached else 0
    faces = sum(int(photo.counted[name].sum()) for photo in truth.values())
    precision = [h / p if p else 0.0 for h, p in zip(hit, passed, strict=True)]
    return np.array(precision), np.array(hit) / faces


def area(precision: np.ndarray, recall: np.ndarray) -> float:
    """Under the best precision at each recall or beyond."""
    total = last = 0.0
    for index, level in enumerate(recall.tolist()):
        total += (level - last) * float(precision[index:].max())
        last = level
    return total


@pytest.mark.parametrize("seed", range(3))
def test_random_photos_against_a_literal_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    predictions, truth = {}, {}
    for number in range(12):
        corners = rng.integers(0, 60, (int(rng.integers(0, 9)), 2)).astype(float)
        boxes = np.concatenate([corners, corners + rng.integers(5, 20, corners.shape)], axis=1)
        counted = {name: rng.random(len(boxes)) < 0.6 for name in DIFFICULTIES}
        truth[f"e/{number}.jpg"] = PhotoFaces(boxes, counted)
        near = boxes[rng.integers(0, len(boxes), 20)] if len(boxes) else np.zeros((0, 4))
        near = near + rng.normal(0, 1.5, near.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
        away = rng.integers(0, 60, (5, 2)).astype(float)
        boxes = np.concatenate([near, np.concatenate([away, away + 9], axis=1)])
        scores = rng.beta(0.5, 0.5, len(boxes)).round(2)  # many of them equal
        predictions[f"e/{number}.jpg"] = (boxes, scores)
    curves = score_predictions(predictions, truth)
    for name, curve in curves.items():
        precision, recall = literal_curve(predictions, truth, name)
        np.testing.assert_allclose(curve.precision, precision, atol=1e-12)
        np.testing.assert_allclose(curve.recall, recall, atol=1e-12)
        assert 0.2 < curve.ap < 0.9
        assert curve.ap == pytest.approx(area(precision, recall), abs=1e-12)


NO_SET: dict[str, list[int]] = {"easy": [], "medium": [], "hard": []}
LISTED: Listed = {
    "0--Parade/a.jpg": (
        [[1, 2, 3, 4], [10, 20, 5, 6], [7, 7, 0, 0]],
        {"easy": [], "medium": [2], "hard": [1, 2]},
    ),
    "0--Parade/b.jpg": ([[5, 5, 9, 9]], {"easy": [1], "medium": [1], "hard": [1]}),
    "1--Picnic/c.jpg": ([], NO_SET),
}


def test_the_official_lists_are_read(tmp_path: Path) -> None:
    truth = read_ground_truth(write_lists(tmp_path, LISTED))
    assert list(truth) == list(LISTED)
    np.testing.assert_array_equal(
        truth["0--Parade/a.jpg"].boxes, [[1, 2, 4, 6], [10, 20, 15, 26], [7, 7, 7, 7]]
    )
    for path, (boxes, counted) in LISTED.items():
        assert truth[path].boxes.shape == (len(boxes), 4)
        for name in DIFFICULTIES:
            assert (np.flatnonzero(truth[path].counted[name]) + 1).tolist() == counted[name]


def missing(folder: Path) -> str:
    (folder / "wider_medium_val.mat").unlink()
    return "wider_medium_val.mat: no such file"


def truncated(folder: Path) -> str:
    file = folder / "wider_hard_val.mat"
    file.write_bytes(file.read_bytes()[:300])
    return "wider_hard_val.mat: not one of the official lists"


def something_else(folder: Path) -> str:
    savemat(folder / "wider_easy_val.mat", {"event_list": [1.0], "gt_list": [2.0]})
    return "wider_easy_val.mat: not one of the official lists"


def other_photos(folder: Path) -> str:
    write_lists(folder / "more", {**LISTED, "2--X/d.jpg": ([], NO_SET)})
    shutil.copy(folder / "more" / "wider_easy_val.mat", folder)
    return "wider_easy_val.mat: lists other photos"


def too_high(folder: Path) -> str:
    write_lists(folder, {"e/a.jpg": ([[1, 2, 3, 4]], {**NO_SET, "hard": [2]})})
    return "wider_hard_val.mat: counts a face of e/a.jpg"


def too_low(folder: Path) -> str:
    write_lists(folder, {"e/a.jpg": ([[1, 2, 3, 4]], {**NO_SET, "easy": [0]})})
    return "wider_easy_val.mat: counts a face of e/a.jpg"


@pytest.mark.parametrize(
    "spoil", [missing, truncated, something_else, other_photos, too_high, too_low]
)
def test_lists_that_cannot_be_used_are_named(tmp_path: Path, spoil: Callable[[Path], str]) -> None:
    write_lists(tmp_path, LISTED)
    words = spoil(tmp_path)
    with pytest.raises(ProtocolError) as caught:
        read_ground_truth(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}")
    assert words in message
    assert "eval_tools" in message
    assert "\n" not in message


def test_only_photos_that_are_there_are_scored(tmp_path: Path) -> None:
    truth = {"e/0.jpg": faces(0), "e/1.jpg": faces(0, 100), "f/2.jpg": faces(0)}
    with pytest.raises(ProtocolError, match="none of the 3 photos"):
        photos_present(truth, tmp_path)
    for name in ("e/1.jpg", "f/2.jpg", "f/0.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert photos_present(truth, tmp_path) == {
        "e/1.jpg": truth["e/1.jpg"],
        "f/2.jpg": truth["f/2.jpg"],
    }


def test_the_official_lists_hold_what_is_known_of_them(shared: Path) -> None:
    """Numbers of faces as in the dataset's papers; boxes as in its label file."""
    data = shared / "widerface"
    truth = read_ground_truth(data / "ground_truth")
    counted = {
        name: sum(int(photo.counted[name].sum()) for photo in truth.values())
        for name in DIFFICULTIES
    }
    assert counted == {"easy": 7211, "medium": 13319, "hard": 31958}
    assert len(truth) == 3226
    labels = read_labels(data / "wider_face_split" / "wider_face_val_bbx_gt.txt")
    present = photos_present(truth, data / "val" / "images")
    assert present.keys() == {photo.path for photo in labels}
    for photo in labels:
        np.testing.assert_array_equal(present[photo.path].boxes, photo.boxes)
        # A set that is harder counts what an easier one counts.
        easy, medium, hard = (present[photo.path].counted[name] for name in DIFFICULTIES)
        assert (easy <= medium).all()
        assert (medium <= hard).all()


def test_a_result_is_not_read_off_the_range_of_recall() -> None:
    """The curve ends where the detections do; nothing is made up beyond."""
    curve: PrecisionRecall = score_predictions(
        {"e/0.jpg": found((0, 0.9), (50, 0.2))}, {"e/0.jpg": faces(0, 100, 200)}
    )["hard"]
    assert curve.recall.max() == pytest.approx(1 / 3)
    assert curve.ap == pytest.approx(1 / 3)
