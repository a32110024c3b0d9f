"""The four objectives of the generator (paper section 3)."""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from models.inner_step import adam_step, flat
from models.multibox import Assignment, MultiBoxLoss
from models.retinaface import RetinaFace
from utils.processes import mean_over_processes

OBJECTIVES = ("rev", "proc", "post", "cycl")
"""Review convenience; fidelity before, after and across training."""


def review_loss(redrawn: Tensor, blurred: Tensor, mask: Tensor, budget: float) -> Tensor:
    """L_rev: mean over images of relu(S_i - budget).

    S_i is the smooth-L1 distance in grey levels of image i, averaged over its masked
    pixels and channels. `redrawn`, `blurred`: [B, 3, H, W], 0-255; `mask`: [B, 1, H, W],
    0 or 1. An image with an empty mask counts as distance 0. Where several processes share
    a batch, the mean of their losses is the loss of the whole.
    """
    distance = F.smooth_l1_loss(redrawn, blurred, reduction="none") * mask
    pixels = mask.sum(dim=(1, 2, 3)) * redrawn.shape[1]
    per_image = distance.sum(dim=(1, 2, 3)) / pixels.clamp(min=1)
    images = mean_over_processes(mask.new_full((), len(mask)))
    return F.relu(per_image - budget).sum() / images


def generator_objectives(
    redrawn: Tensor,
    blurred: Tensor,
    clean: Tensor,
    mask: Tensor,
    labels: Assignment,
    pseudo: Assignment,
    critic: RetinaFace,
    adversary: RetinaFace,
    optimizer: torch.optim.Adam,
    loss_function: MultiBoxLoss,
    budget: float,
    label_smoothing: float,
    wanted: Collection[str] = OBJECTIVES,
    second_order: bool = True,
    precision: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The `wanted` of the four objectives of one batch, differentiable in `redrawn`.

    Images: [B, 3, H, W] RGB, 0-255. `labels` are y, `pseudo` is t (`models.detection.
    pseudo_labels` on `clean`), both assigned to the frame's anchors. `critic` is frozen and
    in eval mode; `optimizer` is phase (b)'s, over the adversary's parameters. Parameters,
    buffers and optimizer state are left as they are; the adversary is left in train mode.
    Without `second_order`, the inner gradient is cut off from `redrawn`: L_cycl has its value
    still, and no gradient. `precision`: of the first-order passes of critic and adversary.
    """
    losses = {}
    if "rev" in wanted:
        losses["rev"] = review_loss(redrawn, blurred, mask, budget)
    with torch.autocast(redrawn.device.type, precision, enabled=precision != torch.float32):
        if "proc" in wanted:
            losses["proc"] = loss_function.against(pseudo, critic(redrawn))
        if "post" in wanted:
            adversary.eval()
            losses["post"] = loss_function.against(pseudo, adversary(redrawn), label_smoothing)
    adversary.train()
    if "cycl" in wanted:
        losses["cycl"] = _across_training(
            redrawn if second_order else redrawn.detach(),
            clean,
            labels,
            pseudo,
            adversary,
            optimizer,
            loss_function,
            label_smoothing,
            second_order,
        )
    return losses


def _across_training(
    redrawn: Tensor,
    clean: Tensor,
    labels: Assignment,
    pseudo: Assignment,
    adversary: RetinaFace,
    optimizer: torch.optim.Adam,
    loss_function: MultiBoxLoss,
    label_smoothing: float,
    second_order: bool,
) -> Tensor:
    """L_cycl = D(f_g'(x), t), f_g' being f_g after one Adam step on D(f_g(x̂), y)."""
    # Train mode writes batch statistics into the buffers it is given, without moving their
    # version counters: on the adversary's own, the graph of `post` would go wrong silently.
    buffers = {name: buffer.clone() for name, buffer in adversary.named_buffers()}
    trained = {name: p for name, p in adversary.named_parameters() if p.requires_grad}
    predictions = functional_call(adversary, buffers, (redrawn,))
    inner = loss_function.against(labels, predictions, label_smoothing)
    gradients = torch.autograd.grad(inner, list(trained.values()), create_graph=second_order)
    joint = mean_over_processes(flat(gradients)).split([p.numel() for p in trained.values()])
    stepped = adam_step(
        adversary,
        {
            name: gradient.view_as(parameter)
            for (name, parameter), gradient in zip(trained.items(), joint, strict=True)
        },
        optimizer,
    )
    adversary.eval()
    predictions = functional_call(adversary, {**stepped, **buffers}, (clean,))
    adversary.train()
    return loss_function.against(pseudo, predictions, label_smoothing)
