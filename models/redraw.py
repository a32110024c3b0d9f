"""Applies the generator where faces are: the one way in training and in use."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.blur import face_mask
from utils.boxes import pixel_boxes, usable
from utils.tiles import LATTICE, Tile, plan_tiles

MID_GREY = 127.5
"""The generator's zero."""

MAX_PIXELS = 1 << 21
"""Pixels of one generator call; bounds the memory of a photo full of faces."""


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

    `blurred`: [B, 3, H, W] RGB, 0-255, float (differentiable with respect to the
    generator) or uint8 (rounded). `boxes`: per image float [N, 4] as (x1, y1, x2, y2);
    those of more than 1 px are redrawn. `face_size` and `context`: see
    `utils.tiles.plan_tiles`. Pixels outside the boxes are returned bit-identical.
    Raises `RedrawError` for uint8 input if the generator returns NaN or infinity.
    """
    height, width = blurred.shape[2:]
    masks = frame_masks(boxes, height, width).to(blurred.device)
    by_shape: dict[tuple[int, int, int], list[tuple[int, Tile]]] = defaultdict(list)
    for image, image_boxes in enumerate(boxes):
        faces = pixel_boxes(image_boxes[usable(image_boxes)], height, width)
        for tile in plan_tiles(faces, height, width, face_size, context):
            x1, y1, x2, y2 = tile.region
            by_shape[(tile.level, y2 - y1, x2 - x1)].append((image, tile))

    indices, values = [], []
    for (level, tile_height, tile_width), group in by_shape.items():
        per_call = max(1, (MAX_PIXELS << (2 * level)) // (tile_height * tile_width))
        for start in range(0, len(group), per_call):
            part = group[start : start + per_call]
            inputs = torch.stack(
                [_tile_input(blurred[image], masks[image], tile) for image, tile in part]
            )
            outputs = (generator(inputs).float() + 1) * MID_GREY  # [P, 3, h, w] in 0-255
            if level:
                outputs = F.interpolate(
                    outputs, scale_factor=float(1 << level), mode="bilinear", align_corners=False
                )
            for (image, tile), output in zip(part, outputs, strict=True):
                pixels = torch.from_numpy(tile.pixels).to(blurred.device)
                local = (pixels // width - tile.region[1]) * output.shape[2] + (
                    pixels % width - tile.region[0]
                )
                indices.append(image * height * width + pixels)
                values.append(output.flatten(1)[:, local].T)  # [P, 3]
    if not indices:
        return blurred.clone()
    redrawn = torch.cat(values)
    if not blurred.is_floating_point():
        if not torch.isfinite(redrawn).all():
            raise RedrawError("the generator returned values that are not finite")
        redrawn = redrawn.round().clamp(0, 255)
    flat = blurred.permute(0, 2, 3, 1).reshape(-1, 3)
    flat = flat.index_put((torch.cat(indices),), redrawn.to(blurred.dtype))
    return flat.view(len(blurred), height, width, 3).permute(0, 3, 1, 2)  # channels-last in memory


def frame_masks(boxes: Sequence[np.ndarray], height: int, width: int) -> Tensor:
    """The face mask m: uint8 [B, 1, H, W], 1 inside the boxes of more than 1 px."""
    masks = [face_mask(image_boxes, height, width) for image_boxes in boxes]
    return torch.from_numpy(np.stack(masks))[:, None]


def _tile_input(image: Tensor, mask: Tensor, tile: Tile) -> Tensor:
    """Generator input [4, h, w] of one tile: the image in [-1, 1] and the mask, 0 or 1.

    The mask holds every face in the region, also those that another tile pastes back.
    """
    x1, y1, x2, y2 = tile.region
    cut = image[:, y1:y2, x1:x2].float() / MID_GREY - 1
    stacked = torch.cat([cut, mask[:, y1:y2, x1:x2].float()])
    # Beyond the frame lies mid-grey, which is 0 here as in the convolutions' own padding.
    stacked = F.pad(stacked, (0, x2 - x1 - cut.shape[2], 0, y2 - y1 - cut.shape[1]))
    if tile.level:
        stacked = F.avg_pool2d(stacked[None], 1 << tile.level)[0]
        # A cell that a face touches is face: the mask covers, it does not fade.
        stacked = torch.cat([stacked[:3], (stacked[3:] > 0).float()])
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
