"""Plans the tiles in which the generator sees faces, so that it runs only where faces are.

A face of up to `face_size` px is seen at the photo's own scale (level 0), a larger one at the
scale 2^-level that brings it under `face_size`. Tiles lie on a lattice of 32 px of their own
scale: the generator's five max-poolings then fall as they would on the whole frame.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.blur import face_mask
from utils.boxes import pixel_boxes, usable

LATTICE = 32

MAX_AREA = 1 << 18
"""Pixels of a shared tile, at most; bounds the memory of a photo full of faces."""

MAX_PIXELS = 1 << 21
"""Pixels of one generator call in training, at most, likewise."""


@dataclass(frozen=True)
class Tile:
    """One region of a frame that goes through the generator.

    `region`: (x1, y1, x2, y2) in frame pixels, multiples of 32 * 2^level; it may reach
    beyond the frame on the right and below. `pixels`: int64 [P], the flat indices
    (y * width + x) of the frame's pixels that are pasted back from this tile.
    """

    level: int
    region: tuple[int, int, int, int]
    pixels: np.ndarray


@dataclass(frozen=True)
class TileGroup:
    """Tiles of one level and shape, which go through the generator in one call.

    `side`: (height, width) of a tile in frame pixels. `image`, `top`, `left`: int64 [P], the
    frame of the batch and the corner in it. `source`: int64 [Q], places in the P outputs at
    frame scale, flattened; `target`: int64 [Q], the places in the pixels of all frames, one
    frame's rows after the other, where they are pasted.
    """

    level: int
    side: tuple[int, int]
    image: Tensor
    top: Tensor
    left: Tensor
    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class TilePlan:
    """All tiles of a batch of frames.

    `frames`: int64 [B, 3], of each frame (start, height, width): where its first pixel lies
    among those of all frames, and its sides.
    """

    groups: list[TileGroup]
    frames: Tensor

    def to(self, device: torch.device) -> TilePlan:
        """Move all tensors; pinned ones without waiting."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TilePlan:
        """Copy to page-locked memory."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> TilePlan:
        groups = []
        for group in self.groups:
            tensors = (group.image, group.top, group.left, group.source, group.target)
            groups.append(TileGroup(group.level, group.side, *map(change, tensors)))
        return TilePlan(groups, change(self.frames))


def plan_batch(
    boxes: Sequence[np.ndarray], height: int, width: int, face_size: int, context: int
) -> TilePlan:
    """`plan_frames` for a batch of frames of `height` x `width`, in calls of `MAX_PIXELS`."""
    sizes = [(height, width)] * len(boxes)
    return plan_frames(boxes, sizes, face_size, context, MAX_PIXELS)


def plan_frames(
    boxes: Sequence[np.ndarray],
    sizes: Sequence[tuple[int, int]],
    face_size: int,
    context: int,
    max_pixels: int,
) -> TilePlan:
    """Tiles for all faces of a batch of frames.

    `boxes`: per frame float [N, 4] as (x1, y1, x2, y2); those of more than 1 px are covered.
    `sizes`: per frame (height, width). `face_size` and `context`: see `plan_tiles`. A generator
    call gets at most `max_pixels` px, or a single tile.
    """
    table = np.array([(0, *size) for size in sizes], dtype=np.int64).reshape(-1, 3)
    table[1:, 0] = (table[:, 1] * table[:, 2]).cumsum()[:-1]
    by_shape: dict[tuple[int, int, int], list[tuple[int, Tile]]] = defaultdict(list)
    for image, (image_boxes, (height, width)) in enumerate(zip(boxes, sizes, strict=True)):
        faces = pixel_boxes(image_boxes[usable(image_boxes)], height, width)
        for tile in plan_tiles(faces, height, width, face_size, context):
            x1, y1, x2, y2 = tile.region
            by_shape[(tile.level, y2 - y1, x2 - x1)].append((image, tile))
    groups = []
    for (level, tile_height, tile_width), tiles in by_shape.items():
        per_call = max(1, (max_pixels << (2 * level)) // (tile_height * tile_width))
        for start in range(0, len(tiles), per_call):
            part = tiles[start : start + per_call]
            groups.append(_group(part, level, (tile_height, tile_width), table))
    return TilePlan(groups, torch.from_numpy(table))


def _group(
    tiles: list[tuple[int, Tile]], level: int, side: tuple[int, int], frames: np.ndarray
) -> TileGroup:
    source, target = [], []
    for number, (image, tile) in enumerate(tiles):
        x1, y1 = tile.region[:2]
        start, _, width = frames[image].tolist()
        rows, columns = tile.pixels // width - y1, tile.pixels % width - x1
        source.append((number * side[0] + rows) * side[1] + columns)
        target.append(start + tile.pixels)
    return TileGroup(
        level,
        side,
        torch.tensor([image for image, _ in tiles]),
        torch.tensor([tile.region[1] for _, tile in tiles]),
        torch.tensor([tile.region[0] for _, tile in tiles]),
        torch.from_numpy(np.concatenate(source)),
        torch.from_numpy(np.concatenate(target)),
    )


def frame_masks(boxes: Sequence[np.ndarray], height: int, width: int) -> Tensor:
    """The face mask m of a batch: uint8 [B, 1, H, W], 1 inside the boxes of more than 1 px."""
    masks = [face_mask(image_boxes, height, width) for image_boxes in boxes]
    return torch.from_numpy(np.stack(masks))[:, None]


def plan_tiles(
    faces: np.ndarray, height: int, width: int, face_size: int, context: int
) -> list[Tile]:
    """Cover `faces` with tiles.

    `faces`: int [N, 4] as (x1, y1, x2, y2), inside the frame of `height` x `width`. Around
    each face the tile holds at least `context` px of its own scale, where the frame has
    them. Faces whose tiles together cost no less than one tile around both share it, while it has
    at most `MAX_AREA` px of its own scale. Every
    pixel of a face is owned by exactly one tile; where faces of several levels overlap, by
    that of the finest.
    """
    faces = faces[(faces[:, 2] > faces[:, 0]) & (faces[:, 3] > faces[:, 1])].astype(np.int64)
    if not len(faces):
        return []
    longest = (faces[:, 2:] - faces[:, :2]).max(axis=1)
    levels = np.ceil(np.log2(np.maximum(longest / face_size, 1.0))).astype(int)
    owner = np.full((height, width), -1, dtype=np.int32)
    planned: list[tuple[int, np.ndarray]] = []
    for level in sorted(set(levels.tolist()), reverse=True):
        group = faces[levels == level]
        regions, members = _share(
            _regions(group, height, width, context, level), MAX_AREA << (2 * level)
        )
        for region, indices in zip(regions, members, strict=True):
            for x1, y1, x2, y2 in group[indices]:
                owner[y1:y2, x1:x2] = len(planned)
            planned.append((level, region))
    tiles = []
    for number, (level, region) in enumerate(planned):
        x1, y1, x2, y2 = region.tolist()
        rows, columns = (owner[y1:y2, x1:x2] == number).nonzero()
        if len(rows):  # a face inside finer ones owns nothing
            tiles.append(Tile(level, (x1, y1, x2, y2), (rows + y1) * width + columns + x1))
    return tiles


def _regions(faces: np.ndarray, height: int, width: int, context: int, level: int) -> np.ndarray:
    """Each face with its context, widened to the level's lattice: int64 [N, 4]."""
    lattice = LATTICE << level
    margin = context << level
    starts = (faces[:, :2] - margin).clip(min=0) // lattice * lattice
    ends = -(-np.minimum(faces[:, 2:] + margin, [width, height]) // lattice) * lattice
    return np.concatenate([starts, ends], axis=1)


def _share(regions: np.ndarray, max_area: int) -> tuple[np.ndarray, list[list[int]]]:
    """Join regions while one around two is no larger than both, nor than `max_area` pixels.

    Also says which of the given regions is in which of the returned.
    """
    members = [[index] for index in range(len(regions))]
    first = 0
    while first < len(regions):
        joined = np.concatenate(
            [
                np.minimum(regions[first, :2], regions[:, :2]),
                np.maximum(regions[first, 2:], regions[:, 2:]),
            ],
            axis=1,
        )
        saving = _area(regions) + _area(regions[first]) - _area(joined)
        saving[_area(joined) > max_area] = -1
        saving[first] = -1
        other = int(saving.argmax())
        if saving[other] < 0:
            first += 1
            continue
        members[first] += members[other]
        regions[first] = joined[other]
        regions = np.delete(regions, other, axis=0)
        del members[other]
        first = 0  # the larger region may now be worth sharing with an earlier one
    return regions, members


def _area(regions: np.ndarray) -> np.ndarray:
    return (regions[..., 2] - regions[..., 0]) * (regions[..., 3] - regions[..., 1])
