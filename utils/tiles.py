"""Plans the tiles in which the generator sees faces, so that it runs only where faces are.

A face of up to `face_size` px is seen at the photo's own scale (level 0), a larger one at the
scale 2^-level that brings it under `face_size`. Tiles lie on a lattice of 32 px of their own
scale: the generator's five max-poolings then fall as they would on the whole frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LATTICE = 32

MAX_AREA = 1 << 20
"""Pixels of a shared tile, at most; bounds the memory of a photo full of faces."""


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
