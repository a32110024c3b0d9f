"""D(p, y): RetinaFace's MultiBox loss without its landmark term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.anchors import anchor_grid, encode, match
from models.retinaface import Predictions
from utils.processes import process_count, sum_over_processes


@dataclass(frozen=True)
class Targets:
    """Faces of a batch, padded to the largest count: boxes [B, M, 4] (pixels), present [B, M]."""

    boxes: Tensor
    present: Tensor

    def to(self, device: torch.device) -> Targets:
        """Move both tensors."""
        return Targets(self.boxes.to(device), self.present.to(device))


@dataclass(frozen=True)
class Assignment:
    """Targets assigned to the A anchors of a frame: what every loss against them shares."""

    positive: Tensor  # bool [B, A]
    offsets: Tensor  # [B, A, 4], encoded faces; 0 where not positive
    share: Tensor  # scalar: positives of all processes, divided by their number


@dataclass(frozen=True)
class MultiBoxLoss:
    """`box_weight * box + class`, each summed and divided by the batch's positives.

    Positives are the anchors of `models.anchors.match` at `match_iou`. Of the other
    anchors of an image, the `negatives_per_positive` times as many with the highest
    background loss count; an image without faces contributes nothing. Where several
    processes share a batch, the mean of their losses is the loss of the whole.
    """

    match_iou: float = 0.35
    negatives_per_positive: int = 7
    box_weight: float = 2.0

    def __call__(
        self,
        predictions: Predictions,
        targets: Targets,
        frame: tuple[int, int],
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Scalar loss of predictions for a frame of (height, width) against `targets`."""
        return self.against(self.assign(targets, frame), predictions, label_smoothing)

    @torch.no_grad()
    def assign(self, targets: Targets, frame: tuple[int, int]) -> Assignment:
        """Match `targets` with the anchors of a frame of (height, width)."""
        anchors = anchor_grid(*frame, targets.boxes.device).to(targets.boxes.dtype)
        positive, index = match(targets.boxes, targets.present, anchors, self.match_iou)
        if targets.boxes.shape[1]:
            faces = targets.boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
            offsets = encode(faces, anchors).where(positive[:, :, None], 0.0)
        else:
            offsets = targets.boxes.new_zeros(*positive.shape, 4)
        share = sum_over_processes(positive.sum()).clamp(min=1) / process_count()
        return Assignment(positive, offsets, share)

    def against(
        self, assignment: Assignment, predictions: Predictions, label_smoothing: float = 0.0
    ) -> Tensor:
        """Scalar loss of predictions against targets that were assigned beforehand."""
        positive = assignment.positive
        offsets = predictions.offsets.to(assignment.offsets.dtype)  # from bfloat16, perhaps
        logits = predictions.logits.to(assignment.offsets.dtype)
        with torch.no_grad():
            counted = positive | self._hard_negatives(logits, positive)
        # Every anchor is compared and then masked: selecting would synchronise with the host.
        box = F.smooth_l1_loss(offsets, assignment.offsets, reduction="none").sum(dim=-1)
        box_loss = box.where(positive, 0.0).sum()
        entropy = F.cross_entropy(
            logits.transpose(1, 2),
            positive.long(),
            reduction="none",
            label_smoothing=label_smoothing,
        )
        class_loss = entropy.where(counted, 0.0).sum()
        return (self.box_weight * box_loss + class_loss) / assignment.share

    def _hard_negatives(self, logits: Tensor, positive: Tensor) -> Tensor:
        difficulty = F.softplus(logits[..., 1] - logits[..., 0])  # -log p(background)
        difficulty = difficulty.masked_fill(positive, -1.0)
        order = difficulty.argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        wanted = self.negatives_per_positive * positive.sum(dim=1, keepdim=True)
        return (rank < wanted) & ~positive
