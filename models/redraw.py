"""Applies the generator where faces are: the one way in training and in use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.blur import Pixels, face_mask
from utils.tiles import LATTICE, TileGroup, TilePlan, frame_masks, plan_batch, plan_frames

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


def redraw_frames(
    generator: nn.Module,
    frames: Sequence[Pixels],
    boxes: Sequence[np.ndarray],
    face_size: int,
    context: int,
    max_pixels: int,
) -> list[Pixels]:
    """`redraw` for frames of different sizes, uint8 [H, W, 3]; a call gets `max_pixels` at most.

    A frame's result does not depend on the others but for the last bits of float32, that is by
    at most one grey level. Raises `RedrawError` if the generator returns NaN or infinity.
    """
    device = next(generator.parameters()).device
    sizes = [(frame.shape[0], frame.shape[1]) for frame in frames]
    masks = [face_mask(each, *size).ravel() for each, size in zip(boxes, sizes, strict=True)]
    pixels = torch.from_numpy(np.concatenate([frame.reshape(-1, 3) for frame in frames]))
    mask = torch.from_numpy(np.concatenate(masks))
    plan = plan_frames(boxes, sizes, face_size, context, max_pixels)
    with torch.inference_mode():
        redrawn = _redraw_pixels(generator, pixels.to(device), mask.to(device), plan.to(device))
    parts = redrawn.cpu().split([height * width for height, width in sizes])
    return [part.view(*size, 3).numpy() for part, size in zip(parts, sizes, strict=True)]


def redraw_tiles(generator: nn.Module, blurred: Tensor, mask: Tensor, plan: TilePlan) -> Tensor:
    """`redraw` by a plan that was made beforehand, with nothing that waits for the device.

    `blurred`: [B, 3, H, W] RGB, 0-255, float (differentiable with respect to the
    generator) or uint8 (rounded). `mask`: [B, 1, H, W], 1 inside the boxes. `plan`: of the
    same boxes, on the same device. Pixels outside the boxes are returned bit-identical.
    Raises `RedrawError` for uint8 input if the generator returns NaN or infinity.
    """
    pixels = blurred.permute(0, 2, 3, 1).reshape(-1, 3)
    redrawn = _redraw_pixels(generator, pixels, mask.reshape(-1), plan)
    # [B, 3, H, W], channels-last in memory
    return redrawn.view(len(blurred), *blurred.shape[2:], 3).permute(0, 3, 1, 2)


def _redraw_pixels(generator: nn.Module, pixels: Tensor, mask: Tensor, plan: TilePlan) -> Tensor:
    """`redraw_tiles` on the pixels [N, 3] of all frames, row by row, and their mask [N]."""
    if not plan.groups:
        return pixels.clone()
    values = []
    for group in plan.groups:
        shown = _tile_inputs(pixels, mask, plan.frames, group)
        outputs = (generator(shown).float() + 1) * MID_GREY
        if group.level:
            outputs = F.interpolate(
                outputs,
                scale_factor=float(1 << group.level),
                mode="bilinear",
                align_corners=False,
            )
        values.append(outputs.permute(0, 2, 3, 1).reshape(-1, 3)[group.source])  # [Q, 3]
    redrawn = torch.cat(values)
    if not pixels.is_floating_point():
        if not torch.isfinite(redrawn).all():
            raise RedrawError("the generator returned values that are not finite")
        redrawn = redrawn.round().clamp(0, 255)
    target = torch.cat([group.target for group in plan.groups])
    return pixels.index_put((target,), redrawn.to(pixels.dtype))


def _tile_inputs(pixels: Tensor, mask: Tensor, frames: Tensor, group: TileGroup) -> Tensor:
    """Generator inputs [P, 4, h, w] of a group: the image in [-1, 1] and the mask, 0 or 1.

    The mask holds every face in the region, also those that another tile pastes back.
    """
    start, frame_height, frame_width = frames[group.image].unbind(dim=1)  # [P]
    height, width = group.side
    rows = group.top[:, None] + torch.arange(height, device=pixels.device)  # [P, h]
    columns = group.left[:, None] + torch.arange(width, device=pixels.device)  # [P, w]
    last_row, last_column = frame_height[:, None] - 1, frame_width[:, None] - 1
    inside = (rows <= last_row)[:, :, None] & (columns <= last_column)[:, None]
    row_starts = start[:, None] + torch.minimum(rows, last_row) * frame_width[:, None]
    where = row_starts[:, :, None] + torch.minimum(columns, last_column)[:, None]  # [P, h, w]
    stacked = torch.cat(
        [pixels[where].float() / MID_GREY - 1, mask[where][..., None].float()], dim=-1
    )
    # Beyond the frame lies mid-grey, which is 0 here as in the convolutions' own padding.
    stacked = stacked.where(inside[..., None], 0.0).permute(0, 3, 1, 2)  # [P, 4, h, w]
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
