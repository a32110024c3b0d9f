"""D(p, y): RetinaFace's MultiBox loss without its landmark term."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.anchors import anchor_grid, encode, match
from models.retinaface import Predictions


@dataclass(frozen=True)
class Targets:
    """Faces of a batch, padded to the largest count: boxes [B, M, 4] (pixels), present [B, M]."""

    boxes: Tensor
    present: Tensor

    def to(self, device: torch.device) -> Targets:
        """Move both tensors."""
        return Targets(self.boxes.to(device), self.present.to(device))


@dataclass(frozen=True)
class MultiBoxLoss:
    """`box_weight * box + class`, each summed and divided by the batch's positives.

    Positives are the anchors of `models.anchors.match` at `match_iou`. Of the other
    anchors of an image, the `negatives_per_positive` times as many with the highest
    background loss count; an image without faces contributes nothing.
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
        offsets, logits = predictions.offsets, predictions.logits
        anchors = anchor_grid(*frame, offsets.device).to(offsets.dtype)
        with torch.no_grad():
            positive, index = match(targets.boxes, targets.present, anchors, self.match_iou)
            counted = positive | self._hard_negatives(logits, positive)
            count = positive.sum().clamp(min=1)

        # Every anchor is compared and then masked: selecting would synchronise with the host.
        if targets.boxes.shape[1]:
            faces = targets.boxes.gather(1, index[:, :, None].expand(-1, -1, 4))
            faces = torch.where(positive[:, :, None], faces, faces.new_tensor([0.0, 0.0, 1.0, 1.0]))
            box = F.smooth_l1_loss(offsets, encode(faces, anchors), reduction="none").sum(dim=-1)
            box_loss = box.where(positive, 0.0).sum()
        else:
            box_loss = offsets.sum() * 0.0
        entropy = F.cross_entropy(
            logits.transpose(1, 2),
            positive.long(),
            reduction="none",
            label_smoothing=label_smoothing,
        )
        class_loss = entropy.where(counted, 0.0).sum()
        return (self.box_weight * box_loss + class_loss) / count

    def _hard_negatives(self, logits: Tensor, positive: Tensor) -> Tensor:
        difficulty = F.softplus(logits[..., 1] - logits[..., 0])  # -log p(background)
        difficulty = difficulty.masked_fill(positive, -1.0)
        order = difficulty.argsort(dim=1, descending=True, stable=True)
        rank = torch.empty_like(order).scatter_(
            1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
        )
        wanted = self.negatives_per_positive * positive.sum(dim=1, keepdim=True)
        return (rank < wanted) & ~positive
