"""Runs RetinaFace on photos: faces in the photo's own pixels."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from models.anchors import anchor_grid, batched_iou, decode
from models.multibox import Targets
from models.retinaface import RetinaFace

MAX_CANDIDATES = 1024
"""Anchors of an image that pseudo-labels are made of, at most."""

MAX_FACES = 512
"""Pseudo-labels of an image, at most."""

ROUNDS = 15
"""Rounds of `suppress`; odd, so that none of its kept boxes is one too many."""


class DetectionError(Exception):
    """The detector returned a value that is not finite."""


@torch.no_grad()
def detect(
    detector: RetinaFace, image: np.ndarray, score: float, nms_iou: float
) -> tuple[np.ndarray, np.ndarray]:
    """Faces of one photo at its own size.

    `image`: uint8 [H, W, 3] RGB. Returns boxes float64 [N, 4] as (x1, y1, x2, y2), clipped
    to the photo, and face probabilities float64 [N] of at least `score`, best first. The
    detector must be in eval mode. Raises `DetectionError` if it returns NaN or infinity.
    """
    device = next(detector.parameters()).device
    height, width = image.shape[:2]
    frame = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float()
    predictions = detector(frame)
    # NaN is not above any score: the photo would pass for one without a face.
    if not all(torch.isfinite(values).all() for values in predictions[:2]):
        raise DetectionError("the detector returned values that are not finite")
    probabilities = predictions.logits[0].softmax(dim=-1)[:, 1]
    candidates = (probabilities >= score).nonzero()[:, 0]
    probabilities = probabilities[candidates]
    anchors = anchor_grid(height, width, device)[candidates]
    boxes = decode(predictions.offsets[0, candidates], anchors)
    kept = nms(boxes, probabilities, nms_iou)
    found = boxes[kept].cpu().numpy().astype(np.float64)
    found[:, [0, 2]] = found[:, [0, 2]].clip(0, width)
    found[:, [1, 3]] = found[:, [1, 3]].clip(0, height)
    return found, probabilities[kept].cpu().numpy().astype(np.float64)


def detect_at_scales(
    detector: RetinaFace,
    image: np.ndarray,
    score: float,
    nms_iou: float,
    longest_side: int,
    shortest_pass: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Faces of one photo, searched at its own size and at halves of it.

    The first pass has a longest side of at most `longest_side` px; each further pass
    halves it while it stays at least `shortest_pass`, so that faces larger than the
    largest anchor (512 px) are found. A face found in several passes gets one box around
    all of its finds: the surest find may cover less of it than another. Arguments and
    result otherwise as `detect`.
    """
    height, width = image.shape[:2]
    side = min(max(height, width), longest_side)
    all_boxes, all_scores = [], []
    while True:
        zoom = side / max(height, width)
        size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
        scaled = image if zoom == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        boxes, scores = detect(detector, scaled, score, nms_iou)
        all_boxes.append(boxes * np.array([width / size[0], height / size[1]] * 2))
        all_scores.append(scores)
        side //= 2
        if side < shortest_pass:
            break
    boxes, scores = np.concatenate(all_boxes), np.concatenate(all_scores)
    if not len(boxes):
        return boxes, scores
    kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), nms_iou).numpy()
    overlap, group = box_iou(torch.from_numpy(boxes), torch.from_numpy(boxes[kept])).max(dim=1)
    joined = boxes[kept]
    for box, iou, index in zip(boxes, overlap.tolist(), group.tolist(), strict=True):
        if iou > nms_iou:
            joined[index, :2] = np.minimum(joined[index, :2], box[:2])
            joined[index, 2:] = np.maximum(joined[index, 2:], box[2:])
    return joined, scores[kept]


@torch.no_grad()
def pseudo_labels(
    critic: RetinaFace, images: Tensor, score_logit: float, nms_iou: float
) -> Targets:
    """The faces t that the critic finds on clean images (`method`: thresholded *logit*).

    `images`: [B, 3, H, W] RGB, 0-255. Of each image, the `MAX_CANDIDATES` anchors with the
    highest raw face logit count, where it reaches `score_logit`; then non-maximum suppression,
    then the best `MAX_FACES`. An image without a find has no present box. The critic must be
    in eval mode. All shapes are fixed beforehand, so nothing waits for the device.
    """
    predictions = critic(images)
    anchors = anchor_grid(*images.shape[2:], images.device)
    logits, index = predictions.logits[..., 1].topk(min(MAX_CANDIDATES, len(anchors)))  # [B, K]
    offsets = predictions.offsets.gather(1, index[..., None].expand(-1, -1, 4))
    boxes = decode(offsets, anchors[index])  # [B, K, 4], best first
    kept = suppress(boxes, logits >= score_logit, nms_iou)
    # The kept ones move to the front, in order; what is left over is not present.
    order = kept.byte().argsort(dim=1, descending=True, stable=True)[:, :MAX_FACES]
    return Targets(boxes.gather(1, order[..., None].expand(-1, -1, 4)), kept.gather(1, order))


def suppress(boxes: Tensor, valid: Tensor, nms_iou: float) -> Tensor:
    """Greedy non-maximum suppression of a whole batch at once; bool [B, K], what is kept.

    `boxes`: [B, K, 4], best first; `valid`: bool [B, K]. A box is dropped where its IoU with a
    better one that is kept exceeds `nms_iou`. The greedy rule is the fixed point of "kept unless
    a better kept box covers me"; started from all, every second round keeps too few and the
    others too many, until they meet. A box at the end of a chain of more than `ROUNDS` boxes that
    each drop the next is dropped in doubt.
    """
    better = torch.ones(boxes.shape[1:2] * 2, dtype=torch.bool, device=boxes.device).triu(1)
    covers = ((batched_iou(boxes, boxes) > nms_iou) & better).to(boxes.dtype)  # [B, K, K]
    kept = valid
    for _ in range(ROUNDS):
        kept = valid & (kept.to(boxes.dtype)[:, None] @ covers < 0.5)[:, 0]
    return kept
