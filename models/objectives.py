"""The four objectives of the generator (paper section 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from models.inner_step import adam_step
from models.multibox import MultiBoxLoss, Targets
from models.retinaface import RetinaFace


@dataclass(frozen=True)
class Objectives:
    """Scalars with their graph: review convenience, fidelity before, after and across training."""

    rev: Tensor
    proc: Tensor
    post: Tensor
    cycl: Tensor

    def total(self, weights: dict[str, float]) -> Tensor:
        """L = sum of weight * objective; all weights are 1 in the paper's recipe."""
        return (
            weights["rev"] * self.rev
            + weights["proc"] * self.proc
            + weights["post"] * self.post
            + weights["cycl"] * self.cycl
        )


def review_loss(redrawn: Tensor, blurred: Tensor, mask: Tensor, budget: float) -> Tensor:
    """L_rev: mean over images of relu(S_i - budget).

    S_i is the smooth-L1 distance in grey levels of image i, averaged over its masked
    pixels and channels. `redrawn`, `blurred`: [B, 3, H, W], 0-255; `mask`: [B, 1, H, W],
    0 or 1. An image with an empty mask counts as distance 0.
    """
    distance = F.smooth_l1_loss(redrawn, blurred, reduction="none") * mask
    pixels = mask.sum(dim=(1, 2, 3)) * redrawn.shape[1]
    per_image = distance.sum(dim=(1, 2, 3)) / pixels.clamp(min=1)
    return F.relu(per_image - budget).mean()


def generator_objectives(
    redrawn: Tensor,
    blurred: Tensor,
    clean: Tensor,
    mask: Tensor,
    labels: Targets,
    pseudo: Targets,
    critic: RetinaFace,
    adversary: RetinaFace,
    optimizer: torch.optim.Adam,
    loss_function: MultiBoxLoss,
    budget: float,
    label_smoothing: float,
) -> Objectives:
    """All four objectives of one batch, differentiable with respect to `redrawn`.

    Images: [B, 3, H, W] RGB, 0-255. `labels` are y, `pseudo` is t (`models.detection.
    pseudo_labels` on `clean`). `critic` is frozen and in eval mode; `optimizer` is phase
    (b)'s, over the adversary's parameters. Parameters, buffers and optimizer state are
    left as they are; the adversary is left in train mode.
    """
    frame = (redrawn.shape[2], redrawn.shape[3])
    proc = loss_function(critic(redrawn), pseudo, frame)

    adversary.eval()
    post = loss_function(adversary(redrawn), pseudo, frame, label_smoothing)

    # Train mode writes batch statistics into the buffers it is given, without moving their
    # version counters: on the adversary's own, the graph of `post` would go wrong silently.
    buffers = {name: buffer.clone() for name, buffer in adversary.named_buffers()}
    trained = {name: p for name, p in adversary.named_parameters() if p.requires_grad}
    adversary.train()
    inner = loss_function(
        functional_call(adversary, buffers, (redrawn,)), labels, frame, label_smoothing
    )
    gradients = torch.autograd.grad(inner, list(trained.values()), create_graph=True)
    stepped = adam_step(adversary, dict(zip(trained, gradients, strict=True)), optimizer)
    adversary.eval()
    predictions = functional_call(adversary, {**stepped, **buffers}, (clean,))
    cycl = loss_function(predictions, pseudo, frame, label_smoothing)
    adversary.train()

    return Objectives(review_loss(redrawn, blurred, mask, budget), proc, post, cycl)
