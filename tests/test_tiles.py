from __future__ import annotations

import numpy as np
import pytest
import torch

import utils.tiles
from tests.batches import same
from utils.boxes import as_boxes
from utils.tiles import LATTICE, TilePlan, frame_masks, plan_batch, plan_tiles


def random_faces(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Faces of 2 px to the whole frame, many of them over one another and cut by the edge."""
    count = int(rng.integers(1, 25))
    sides = np.exp(rng.uniform(np.log(2), np.log(max(height, width)), (count, 2)))
    starts = rng.uniform(-0.2, 1.0, (count, 2)) * [width, height]
    boxes = np.concatenate([np.floor(starts), np.ceil(starts + sides)], axis=1)
    return boxes.clip(0, [width, height, width, height]).astype(np.int64)


@pytest.mark.parametrize("seed", range(40))
def test_tiles_of_random_faces(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 700, 2).tolist()
    face_size, context = int(rng.integers(24, 200)), int(rng.integers(0, 50))
    faces = random_faces(rng, height, width)
    tiles = plan_tiles(faces, height, width, face_size, context)

    finest = np.full((height, width), 99)  # the level at which each pixel must be redrawn
    for x1, y1, x2, y2 in faces.tolist():
        if x2 <= x1 or y2 <= y1:
            continue
        level = 0
        while max(x2 - x1, y2 - y1) > face_size * 2**level:
            level += 1
        finest[y1:y2, x1:x2] = np.minimum(finest[y1:y2, x1:x2], level)

    owned = np.zeros(height * width, dtype=int)
    for tile in tiles:
        x1, y1, x2, y2 = tile.region
        lattice = LATTICE * 2**tile.level
        assert all(value % lattice == 0 for value in tile.region)
        assert 0 <= x1 < x2 < width + lattice
        assert 0 <= y1 < y2 < height + lattice
        rows, columns = tile.pixels // width, tile.pixels % width
        assert len(tile.pixels) > 0
        assert (finest[rows, columns] == tile.level).all()
        owned[tile.pixels] += 1
        # The context lies in the tile too, or beyond the frame.
        margin = context * 2**tile.level
        assert max(int(columns.min()) - margin, 0) >= x1
        assert max(int(rows.min()) - margin, 0) >= y1
        assert min(int(columns.max()) + 1 + margin, width) <= x2
        assert min(int(rows.max()) + 1 + margin, height) <= y2
    np.testing.assert_array_equal(owned.reshape(height, width), finest < 99)


def test_faces_beside_each_other_share_a_tile_where_that_is_no_larger() -> None:
    near = np.array([[2, 2, 20, 20], [40, 4, 60, 20]])
    assert [tile.region for tile in plan_tiles(near, 640, 640, 128, 0)] == [(0, 0, 64, 32)]
    inside = np.array([[2, 2, 60, 60], [35, 35, 50, 50]])
    assert [tile.region for tile in plan_tiles(inside, 640, 640, 128, 0)] == [(0, 0, 64, 64)]
    far = np.array([[2, 2, 20, 20], [600, 600, 620, 620]])
    regions = [tile.region for tile in plan_tiles(far, 640, 640, 128, 0)]
    assert sorted(regions) == [(0, 0, 32, 32), (576, 576, 640, 640)]
    for faces in (near, inside, far):
        cost = sum(
            (x2 - x1) * (y2 - y1)
            for x1, y1, x2, y2 in (t.region for t in plan_tiles(faces, 640, 640, 128, 0))
        )
        alone = [plan_tiles(face[None], 640, 640, 128, 0)[0].region for face in faces]
        assert cost <= sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in alone)


def test_no_faces_no_tiles() -> None:
    assert plan_tiles(np.zeros((0, 4), dtype=np.int64), 100, 100, 64, 16) == []
    outside = np.array([[100, 20, 100, 40], [50, 60, 40, 70]])  # what clipping leaves of them
    assert plan_tiles(outside, 100, 100, 64, 16) == []


@pytest.mark.parametrize("seed", range(12))
def test_plan_of_a_batch(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pixel of every mask is pasted once, from the place of its tile where it belongs."""
    rng = np.random.default_rng(100 + seed)
    height, width = rng.integers(20, 500, 2).tolist()
    face_size, context = int(rng.integers(24, 150)), int(rng.integers(0, 40))
    boxes = [random_faces(rng, height, width) + rng.uniform(-0.4, 0.4) for _ in range(3)]
    boxes.insert(int(rng.integers(0, 4)), np.zeros((0, 4)))
    limit = 96 * 96
    monkeypatch.setattr(utils.tiles, "MAX_PIXELS", limit)
    plan = plan_batch(boxes, height, width, face_size, context)

    pasted = np.zeros((4, height, width), dtype=int)
    regions: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in boxes]
    for group in plan.groups:
        tiles, (tile_height, tile_width) = len(group.image), group.side
        # What one call computes is bounded, unless a single tile is larger.
        assert tiles == 1 or tiles * tile_height * tile_width <= limit * 4**group.level
        number, place = np.divmod(group.source.numpy(), tile_height * tile_width)
        rows, columns = np.divmod(place, tile_width)
        image = group.image.numpy()[number]
        rows, columns = rows + group.top.numpy()[number], columns + group.left.numpy()[number]
        np.testing.assert_array_equal((image * height + rows) * width + columns, group.target)
        np.add.at(pasted, (image, rows, columns), 1)
        corners = zip(group.image.tolist(), group.left.tolist(), group.top.tolist(), strict=True)
        for index, x, y in corners:
            regions[index].append((group.level, (x, y, x + tile_width, y + tile_height)))
    np.testing.assert_array_equal(pasted, frame_masks(boxes, height, width)[:, 0])
    # No more calls than the bound demands.
    for level, side in {(group.level, group.side) for group in plan.groups}:
        sizes = [len(g.image) for g in plan.groups if (g.level, g.side) == (level, side)]
        assert len(sizes) == -(-sum(sizes) // max(1, limit * 4**level // (side[0] * side[1])))
    # The tiles are those that each image has by itself.
    for image_boxes, found in zip(boxes, regions, strict=True):
        usable = image_boxes[(image_boxes[:, 2:] - image_boxes[:, :2] > 1).all(axis=1)]
        rounded = np.concatenate([np.floor(usable[:, :2]), np.ceil(usable[:, 2:])], axis=1)
        rounded = rounded.clip(0, [width, height, width, height]).astype(np.int64)
        alone = plan_tiles(rounded, height, width, face_size, context)
        assert sorted(found) == sorted((tile.level, tile.region) for tile in alone)


def test_tiles_of_one_shape_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    corners = [[x, y, x + 20, y + 20] for x in (5, 197, 389) for y in (5, 197)]
    boxes = [as_boxes(corners), as_boxes(corners[:1])]

    def sizes(plan: TilePlan) -> list[int]:
        return [len(group.image) for group in plan.groups]

    assert sizes(plan_batch(boxes, 600, 600, 64, 0)) == [7]
    monkeypatch.setattr(utils.tiles, "MAX_PIXELS", 3 * 32 * 32)
    assert sizes(plan_batch(boxes, 600, 600, 64, 0)) == [3, 3, 1]
    monkeypatch.setattr(utils.tiles, "MAX_PIXELS", 1)
    assert sizes(plan_batch(boxes, 600, 600, 64, 0)) == [1] * 7


def test_a_batch_without_faces_has_no_plan() -> None:
    boxes = [as_boxes([]), as_boxes([[5, 5, 6, 40]]), as_boxes([[800, 5, 900, 20]])]
    assert plan_batch(boxes, 100, 100, 64, 16).groups == []
    assert not frame_masks(boxes, 100, 100).any()
    assert plan_batch([], 100, 100, 64, 16).groups == []


def test_a_plan_moves_as_a_whole() -> None:
    plan = plan_batch([as_boxes([[5, 5, 90, 70], [70, 70, 90, 90]])], 100, 100, 32, 4)
    assert same(plan.to(torch.device("cpu")), plan)
    moved = plan.to(torch.device("meta"))
    assert len(moved.groups) == len(plan.groups) == 2
    for there, here in zip(moved.groups, plan.groups, strict=True):
        assert (there.level, there.side) == (here.level, here.side)
        for name in ("image", "top", "left", "source", "target"):
            assert getattr(there, name).is_meta
            assert getattr(there, name).shape == getattr(here, name).shape
            assert getattr(here, name).dtype == torch.int64
