"""RetinaFace's anchors: their grid, box encoding, and matching to faces.

Boxes are (x1, y1, x2, y2) in pixels of the frame, anchors (cx, cy, w, h) in pixels.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

STRIDES = (8, 16, 32)
SIDES = ((16, 32), (64, 128), (256, 512))
VARIANCES = (0.1, 0.2)
"""Scales of the encoded centre and size offsets."""


@lru_cache(maxsize=64)
def anchor_grid(height: int, width: int, device: torch.device) -> Tensor:
    """All anchors of a frame: [A, 4] as (cx, cy, w, h), ordered by stride, row, column, side.

    The result is shared between calls; do not change it in place.
    """
    levels = []
    for stride, sides in zip(STRIDES, SIDES, strict=True):
        rows = (torch.arange(-(-height // stride)) + 0.5) * stride
        columns = (torch.arange(-(-width // stride)) + 0.5) * stride
        cy, cx, side = torch.meshgrid(
            rows, columns, torch.tensor(sides, dtype=torch.float32), indexing="ij"
        )
        levels.append(torch.stack([cx, cy, side, side], dim=-1).reshape(-1, 4))
    return torch.cat(levels).to(device)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Offsets [..., A, 4] that move each anchor onto its box; boxes need positive sides."""
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    side = boxes[..., 2:] - boxes[..., :2]
    return torch.cat(
        [
            (centre - anchors[..., :2]) / (VARIANCES[0] * anchors[..., 2:]),
            torch.log(side / anchors[..., 2:]) / VARIANCES[1],
        ],
        dim=-1,
    )


def decode(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes [..., A, 4] from offsets [..., A, 4]; the inverse of `encode`."""
    centre = anchors[..., :2] + offsets[..., :2] * VARIANCES[0] * anchors[..., 2:]
    half = anchors[..., 2:] * torch.exp(offsets[..., 2:] * VARIANCES[1]) / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def batched_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union [B, M, A] of boxes [B, M, 4] and [B, A, 4]; 0 for no area."""
    x1, y1, x2, y2 = boxes[:, :, None].unbind(dim=-1)  # [B, M, 1] each
    u1, v1, u2, v2 = others[:, None].unbind(dim=-1)  # [B, 1, A] each
    overlap = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    overlap = overlap * (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    area = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
    other_area = (u2 - u1).clamp(min=0) * (v2 - v1).clamp(min=0)
    return overlap / (area + other_area - overlap).clamp(min=1e-9)


def match(
    boxes: Tensor, present: Tensor, anchors: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Assign faces to anchors, for a whole batch at once.

    `boxes`: [B, M, 4], padded; `present`: bool [B, M], False for padding. An anchor takes
    the face it overlaps most if their IoU reaches `threshold`; besides, every face claims
    its best anchor (the later face wins a contested one). A face without area claims
    nothing. Returns `positive`, bool [B, A], and `index`, int64 [B, A], the face of each
    positive anchor (0 elsewhere).
    """
    batch, count = present.shape
    if count == 0:
        shape = (batch, anchors.shape[0])
        return present.new_zeros(shape), torch.zeros(shape, dtype=torch.long, device=boxes.device)
    corners = torch.cat(
        [anchors[..., :2] - anchors[..., 2:] / 2, anchors[..., :2] + anchors[..., 2:] / 2], 1
    )
    present = present & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    iou = batched_iou(boxes, corners[None]).masked_fill(~present[:, :, None], -1.0)  # [B, M, A]
    overlap, index = iou.max(dim=1)  # [B, A]
    best_anchor = iou.argmax(dim=2)  # [B, M]
    # Faces are written to the anchors they claim; the highest index wins a contested one.
    order = torch.arange(count, device=boxes.device).expand(batch, count)
    claimed = torch.full_like(index, -1).scatter_reduce(
        1, best_anchor, torch.where(present, order, -1), reduce="amax"
    )
    positive = (overlap >= threshold) | (claimed >= 0)
    index = torch.where(claimed >= 0, claimed, index)
    return positive, torch.where(positive, index, 0)
