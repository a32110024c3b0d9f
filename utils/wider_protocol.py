"""The official WIDER FACE evaluation: AP on the sets easy, medium and hard.

The rules are those of the dataset's MATLAB tools (`eval_tools`; Yang et al., "WIDER FACE: A Face
Detection Benchmark", CVPR 2016). They differ from `utils.average_precision`, and from what one
would guess:

- Scores are stretched to [0, 1] over the whole set of photos, and the curve is read off at 1,000
  thresholds, 0.999 to 0.
- Widths and heights are `x2 - x1 + 1`. A detection belongs to the face that it overlaps most,
  taken or not; it hits from an IoU of 0.5.
- A set counts some of a photo's faces and ignores the others. A hit on an ignored face is left
  out. The first hit on a counted face, by falling score and then in the order given, is right.
  Every other detection is wrong, a second hit included.
- Detections on photos without any labelled face are not counted. Those on photos that have
  faces, but none that the set counts, are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.boxes import Boxes, xywh_to_xyxy
from utils.prediction_files import Detections
from utils.widerface import photo_path

DIFFICULTIES = ("easy", "medium", "hard")
THRESHOLDS = 1000
MIN_IOU = 0.5

HOW_TO_GET = (
    "the official lists come with the evaluation tools (eval_tools.zip) at "
    "http://shuoyang1213.me/WIDERFACE/"
)


class ProtocolError(Exception):
    """Official lists that cannot be used, or do not fit the photos; the message is one line."""


@dataclass(frozen=True)
class PhotoFaces:
    """The faces of one photo.

    boxes: float64 `[F, 4]`, `(x1, y1, x2, y2)` in pixels; every labelled face.
    counted: for each difficulty, bool `[F]`: the faces that it counts; it ignores the others.
    """

    boxes: Boxes
    counted: dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class PrecisionRecall:
    """The result on one difficulty.

    ap: area under the interpolated curve, in [0, 1]; NaN where no face is counted.
    faces: how many are counted.
    recall, precision: float64 `[1000]`, by falling threshold. The precision is 0 at thresholds
        that no detection reaches.
    """

    ap: float
    faces: int
    recall: NDArray[np.float64]
    precision: NDArray[np.float64]


def read_ground_truth(folder: Path) -> dict[str, PhotoFaces]:
    """Read `wider_{face,easy,medium,hard}_val.mat`; photos by their path `event/name.jpg`.

    Raises `ProtocolError` where a file is missing, broken, or at odds with the others. Needs
    SciPy.
    """
    names = _listed(folder, "face", "file_list")
    boxes = [xywh_to_xyxy(found) for found in _listed(folder, "face", "face_bbx_list").values()]
    counted: dict[str, list[NDArray[np.bool_]]] = {}
    for difficulty in DIFFICULTIES:
        chosen = _listed(folder, difficulty, "gt_list")
        if chosen.keys() != names.keys():
            raise ProtocolError(
                f"{_mat_file(folder, difficulty)}: lists other photos than "
                f"{_mat_file(folder, 'face').name}; {HOW_TO_GET}"
            )
        counted[difficulty] = []
        for (path, numbers), faces in zip(chosen.items(), boxes, strict=True):
            numbers = numbers.astype(np.int64).ravel()
            if ((numbers < 1) | (numbers > len(faces))).any():
                raise ProtocolError(
                    f"{_mat_file(folder, difficulty)}: counts a face of {path} that is not among "
                    f"its {len(faces)}; {HOW_TO_GET}"
                )
            counts = np.zeros(len(faces), dtype=np.bool_)
            counts[numbers - 1] = True
            counted[difficulty].append(counts)
    return {
        path: PhotoFaces(found, {name: counted[name][index] for name in DIFFICULTIES})
        for index, (path, found) in enumerate(zip(names, boxes, strict=True))
    }


def _mat_file(folder: Path, name: str) -> Path:
    return folder / f"wider_{name}_val.mat"


def _listed(folder: Path, name: str, key: str) -> dict[str, NDArray[Any]]:
    """The arrays under `key` of one file, by photo; the key `file_list` gives the photos alone."""
    from scipy.io import loadmat  # type: ignore[import-untyped]  # only evaluation needs SciPy

    file = _mat_file(folder, name)
    if not file.is_file():
        raise ProtocolError(f"{file}: no such file; {HOW_TO_GET}")
    try:
        content = loadmat(file, variable_names=["event_list", "file_list", key])
        events = [str(event[0]) for event in content["event_list"][:, 0]]
        photos = [
            f"{event}/{photo[0]}.jpg"
            for event, photos in zip(events, content["file_list"][:, 0], strict=True)
            for photo in photos[:, 0]
        ]
        values = [value for group in content[key][:, 0] for value in group[:, 0]]
        return dict(zip(photos, values, strict=True))
    except Exception:  # loadmat raises whatever the broken bytes lead it to
        raise ProtocolError(
            f"{file}: not one of the official lists, or truncated; {HOW_TO_GET}"
        ) from None


def photos_present(
    ground_truth: Mapping[str, PhotoFaces], images_dir: Path
) -> dict[str, PhotoFaces]:
    """The listed photos that are in `images_dir`. Raises `ProtocolError` where none is."""
    present = {
        path: faces
        for path, faces in ground_truth.items()
        if photo_path(images_dir, path).is_file()
    }
    if not present:
        raise ProtocolError(
            f"{images_dir}: none of the {len(ground_truth)} photos of the official lists is here; "
            "expected <event>/<name>.jpg, as data/prepare_widerface.py lays them out"
        )
    return present


def score_predictions(
    predictions: Mapping[str, Detections], ground_truth: Mapping[str, PhotoFaces]
) -> dict[str, PrecisionRecall]:
    """AP and curve on each difficulty, over the photos of `ground_truth`.

    `predictions` are boxes [N, 4] (x1, y1, x2, y2) and scores [N] by photo, in any range of
    scores; a photo without an entry is one without a detection. Where all scores are equal, for
    which the official code has no answer, every detection passes every threshold. Raises
    `ProtocolError` for predictions of other photos, as they would shift the normalisation.
    """
    foreign = predictions.keys() - ground_truth.keys()
    if foreign:
        raise ProtocolError(
            f"predictions of {len(foreign)} photos that are not scored, first {min(foreign)}"
        )
    scores: list[NDArray[np.float64]] = [np.zeros(0)]
    nothing: list[NDArray[np.bool_]] = [np.zeros(0, dtype=np.bool_)]
    right = {name: list(nothing) for name in DIFFICULTIES}
    judged = {name: list(nothing) for name in DIFFICULTIES}
    for path, (boxes, confidences) in predictions.items():
        faces = ground_truth[path]
        if not len(boxes) or not len(faces.boxes):
            continue
        order = np.argsort(-confidences, kind="stable")
        overlaps = _overlaps(boxes[order], faces.boxes)  # [N, F]
        nearest = overlaps.argmax(axis=1)
        hits = overlaps.max(axis=1) >= MIN_IOU
        scores.append(confidences[order])
        for name in DIFFICULTIES:
            is_counted = faces.counted[name][nearest]
            right[name].append(_firsts(nearest, hits & is_counted))
            judged[name].append(~hits | is_counted)
    ranks = _ranks(np.concatenate(scores), [values for _, values in predictions.values()])
    return {
        name: _curve(
            ranks,
            np.concatenate(right[name]),
            np.concatenate(judged[name]),
            sum(int(faces.counted[name].sum()) for faces in ground_truth.values()),
        )
        for name in DIFFICULTIES
    }


def _overlaps(boxes: Boxes, faces: Boxes) -> NDArray[np.float64]:
    """IoU [N, F] of boxes [N, 4] and faces [F, 4], each a pixel wider and higher than written."""
    starts = np.maximum(boxes[:, None, :2], faces[None, :, :2])
    ends = np.minimum(boxes[:, None, 2:], faces[None, :, 2:])
    shared = (ends - starts + 1).clip(min=0).prod(axis=2)
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    face_areas = (faces[:, 2:] - faces[:, :2] + 1).prod(axis=1)
    return shared / (areas[:, None] + face_areas[None] - shared)


def _firsts(nearest: NDArray[np.intp], hits: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Mark the first of the detections that hit one face; bool [N]."""
    places = np.flatnonzero(hits)
    _, first = np.unique(nearest[places], return_index=True)
    marked = np.zeros(len(nearest), dtype=np.bool_)
    marked[places[first]] = True
    return marked


def _ranks(
    scores: NDArray[np.float64], all_scores: list[NDArray[np.float64]]
) -> NDArray[np.float64]:
    """`scores` in [0, 1], from the lowest to the highest of `all_scores`."""
    every = np.concatenate([np.zeros(0), *all_scores])
    if not len(every):
        return scores
    low, high = every.min(), every.max()
    return (scores - low) / (high - low) if high > low else np.ones_like(scores)


def _curve(
    ranks: NDArray[np.float64],
    right: NDArray[np.bool_],
    judged: NDArray[np.bool_],
    faces: int,
) -> PrecisionRecall:
    """Count right and judged detections above each threshold; all arrays [N]."""
    order = np.argsort(-ranks, kind="stable")
    thresholds = 1 - np.arange(1, THRESHOLDS + 1) / THRESHOLDS
    above = np.searchsorted(-ranks[order], -thresholds, side="right")  # [1000]
    found = np.concatenate([[0], right[order].cumsum()])[above]
    claimed = np.concatenate([[0], judged[order].cumsum()])[above]
    precision = found / np.maximum(claimed, 1)
    if not faces:
        return PrecisionRecall(math.nan, 0, np.full(THRESHOLDS, math.nan), precision)
    recall = found / faces
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    ap = float((np.diff(recall, prepend=0.0) * envelope).sum())
    return PrecisionRecall(ap, faces, recall, precision)
