"""Average precision of face detections at IoU 0.5, with faces that are ignored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def average_precision(
    detections: Sequence[tuple[np.ndarray, np.ndarray]],
    faces: Sequence[np.ndarray],
    ignored: Sequence[np.ndarray],
    min_iou: float = 0.5,
) -> float:
    """Area under the interpolated precision-recall curve of a set of photos.

    Per photo: `detections` are boxes [D, 4] (x1, y1, x2, y2) with scores [D], `faces` are
    boxes [F, 4], `ignored` is bool [F]. Detections take faces in order of their score,
    each the free face it overlaps most. One whose best face is ignored counts neither as
    right nor as wrong. Every recall level has the best precision at that recall or beyond.
    Returns a value in [0, 1]; raises `ValueError` if no face counts.
    """
    total = sum(int((~skip).sum()) for skip in ignored)
    if total == 0:
        raise ValueError("average precision needs at least one face that is not ignored")
    scores: list[float] = []
    correct: list[bool] = []
    for (boxes, box_scores), truth, skip in zip(detections, faces, ignored, strict=True):
        iou = _pairwise_iou(boxes, truth)
        free = ~skip
        for index in np.argsort(-box_scores, kind="stable"):
            wanted = np.where(free, iou[index], 0.0)
            best = int(wanted.argmax()) if len(truth) else -1
            if best >= 0 and wanted[best] >= min_iou:
                free[best] = False
                correct.append(True)
            elif (iou[index][skip] >= min_iou).any():
                continue
            else:
                correct.append(False)
            scores.append(float(box_scores[index]))
    right = np.array(correct, dtype=bool)[np.argsort(-np.array(scores), kind="stable")]
    recall = right.cumsum() / total
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def _pairwise_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU [N, M] of boxes [N, 4] and [M, 4]."""
    top_left = np.maximum(boxes[:, None, :2], others[None, :, :2])
    bottom_right = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    overlap = (bottom_right - top_left).clip(min=0).prod(axis=2)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    other_area = (others[:, 2:] - others[:, :2]).prod(axis=1)
    union = area[:, None] + other_area[None] - overlap
    return overlap / np.maximum(union, 1e-9)
