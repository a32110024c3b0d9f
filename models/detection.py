"""Runs RetinaFace on photos: faces in the photo's own pixels."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, nms

from models.anchors import anchor_grid, decode
from models.multibox import Targets
from models.retinaface import RetinaFace


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

    `images`: [B, 3, H, W] RGB, 0-255. Anchors whose raw face logit reaches `score_logit`
    count, then non-maximum suppression per image. An image without a find has no present
    box. The critic must be in eval mode.
    """
    predictions = critic(images)
    logits = predictions.logits[..., 1]  # [B, A]
    boxes = decode(predictions.offsets, anchor_grid(*images.shape[2:], images.device))
    image_index, anchor_index = (logits >= score_logit).nonzero(as_tuple=True)
    kept = batched_nms(
        boxes[image_index, anchor_index], logits[image_index, anchor_index], image_index, nms_iou
    )
    image_index, anchor_index = image_index[kept], anchor_index[kept]
    counts = torch.bincount(image_index, minlength=len(images))
    order = image_index.argsort(stable=True)
    image_index, anchor_index = image_index[order], anchor_index[order]
    slot = torch.arange(len(order), device=images.device) - (counts.cumsum(0) - counts)[image_index]
    most = int(counts.max())
    padded = images.new_zeros(len(images), most, 4)
    padded[image_index, slot] = boxes[image_index, anchor_index]
    present = torch.arange(most, device=images.device) < counts[:, None]
    return Targets(padded, present)
