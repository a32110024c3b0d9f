"""Applies the generator where faces are: the one way in training and in use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.tiles import LATTICE, TileGroup, TilePlan, frame_masks, plan_batch

MID_GREY = 127.5
"""The generator's zero."""


class RedrawError(Exception):
    """The generator returned a value that is not finite."""


def redraw(
    generator: nn.Module,
    blurred: Tensor,
    boxes: Sequence[np.ndarray],
    face_size: int,
    context: int,
) -> Tensor:
    """x̂ = m · g(x_blur, m) + (1 - m) · x_blur, computed on tiles around the faces.

    `boxes`: per image float [N, 4] as (x1, y1, x2, y2); those of more than 1 px are redrawn.
    `face_size` and `context`: see `utils.tiles.plan_tiles`. Otherwise as `redraw_tiles`.
    """
    height, width = blurred.shape[2:]
    mask = frame_masks(boxes, height, width)
    plan = plan_batch(boxes, height, width, face_size, context)
    return redraw_tiles(generator, blurred, mask.to(blurred.device), plan.to(blurred.device))


def redraw_tiles(generator: nn.Module, blurred: Tensor, mask: Tensor, plan: TilePlan) -> Tensor:
    """`redraw` by a plan that was made beforehand, with nothing that waits for the device.

    `blurred`: [B, 3, H, W] RGB, 0-255, float (differentiable with respect to the
    generator) or uint8 (rounded). `mask`: [B, 1, H, W], 1 inside the boxes. `plan`: of the
    same boxes, on the same device. Pixels outside the boxes are returned bit-identical.
    Raises `RedrawError` for uint8 input if the generator returns NaN or infinity.
    """
    if not plan.groups:
        return blurred.clone()
    values = []
    for group in plan.groups:
        outputs = (generator(_tile_inputs(blurred, mask, group)).float() + 1) * MID_GREY
        if group.level:
            outputs = F.interpolate(
                outputs,
                scale_factor=float(1 << group.level),
                mode="bilinear",
                align_corners=False,
            )
        values.append(outputs.permute(0, 2, 3, 1).reshape(-1, 3)[group.source])  # [Q, 3]
    redrawn = torch.cat(values)
    if not blurred.is_floating_point():
        if not torch.isfinite(redrawn).all():
            raise RedrawError("the generator returned values that are not finite")
        redrawn = redrawn.round().clamp(0, 255)
    flat = blurred.permute(0, 2, 3, 1).reshape(-1, 3)
    target = torch.cat([group.target for group in plan.groups])
    flat = flat.index_put((target,), redrawn.to(blurred.dtype))
    # [B, 3, H, W], channels-last in memory
    return flat.view(len(blurred), *blurred.shape[2:], 3).permute(0, 3, 1, 2)


def _tile_inputs(blurred: Tensor, mask: Tensor, group: TileGroup) -> Tensor:
    """Generator inputs [P, 4, h, w] of a group: the image in [-1, 1] and the mask, 0 or 1.

    The mask holds every face in the region, also those that another tile pastes back.
    """
    frame_height, frame_width = blurred.shape[2:]
    height, width = group.side
    rows = group.top[:, None] + torch.arange(height, device=blurred.device)  # [P, h]
    columns = group.left[:, None] + torch.arange(width, device=blurred.device)  # [P, w]
    inside = ((rows < frame_height)[:, :, None] & (columns < frame_width)[:, None])[..., None]
    where = (
        group.image[:, None, None],
        slice(None),
        rows.clamp(max=frame_height - 1)[:, :, None],
        columns.clamp(max=frame_width - 1)[:, None, :],
    )
    stacked = torch.cat([blurred[where].float() / MID_GREY - 1, mask[where].float()], dim=-1)
    # Beyond the frame lies mid-grey, which is 0 here as in the convolutions' own padding.
    stacked = stacked.where(inside, 0.0).permute(0, 3, 1, 2)  # [P, 4, h, w]
    if group.level:
        stacked = F.avg_pool2d(stacked, 1 << group.level)
        # A cell that a face touches is face: the mask covers, it does not fade.
        stacked = torch.cat([stacked[:, :3], (stacked[:, 3:] > 0).float()], dim=1)
    return stacked


def redraw_whole_frame(
    generator: nn.Module, blurred: Tensor, boxes: Sequence[np.ndarray]
) -> Tensor:
    """The reference for `redraw`: the generator on the whole frame, pasted inside the boxes.

    `blurred`: float [B, 3, H, W] RGB, 0-255. Used to measure what tiles cost in error.
    """
    height, width = blurred.shape[2:]
    masks = frame_masks(boxes, height, width).to(blurred.device)
    stacked = torch.cat([blurred / MID_GREY - 1, masks.float()], dim=1)
    outputs = generator(F.pad(stacked, (0, -width % LATTICE, 0, -height % LATTICE)))
    return torch.where(masks > 0, (outputs[:, :, :height, :width] + 1) * MID_GREY, blurred)
