"""Non-maximum suppression of a whole batch against torchvision's, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

import models.detection
from models.detection import ROUNDS, suppress


def random_boxes(random: np.random.Generator, batch: int, count: int, kind: str) -> Tensor:
    """[batch, count, 4], in an order of no meaning."""
    shape = (batch, count, 2)
    if kind == "whole numbers":  # many of them equal, and some without area
        starts, sides = random.integers(0, 4, shape) * 1.0, random.integers(0, 6, shape) * 1.0
    elif kind == "clusters":
        centres = random.uniform(0, 100, (batch, 5, 2))
        chosen = random.integers(0, 5, (batch, count))
        starts = centres[np.arange(batch)[:, None], chosen] + random.normal(0, 3, shape)
        sides = random.uniform(15, 25, shape)
    else:
        side = {"sparse": 12, "dense": 60}[kind]
        starts, sides = random.uniform(0, 80, shape), random.uniform(side / 3, side, shape)
    return torch.tensor(np.concatenate([starts, starts + sides], axis=2), dtype=torch.float32)


def greedy(boxes: Tensor, valid: Tensor, limit: float) -> Tensor:
    """What torchvision keeps, image by image; bool [B, K]."""
    kept = torch.zeros_like(valid)
    for image, candidates in enumerate(valid):
        index = candidates.nonzero()[:, 0]
        scores = -torch.arange(len(index), dtype=torch.float32)
        kept[image, index[nms(boxes[image, index], scores, limit)]] = True
    return kept


@pytest.mark.parametrize("limit", [0.25, 0.45, 0.7])
@pytest.mark.parametrize("kind", ["sparse", "dense", "clusters", "whole numbers"])
def test_suppression_against_torchvision(kind: str, limit: float) -> None:
    random = np.random.default_rng(11)
    for count in (1, 2, 7, 40, 300):
        boxes = random_boxes(random, 6, count, kind)
        valid = torch.from_numpy(random.random((6, count)) < 0.8)
        valid[0], valid[1] = True, False
        kept = suppress(boxes, valid, limit)
        assert torch.equal(kept, greedy(boxes, valid, limit))
        assert not kept[1].any()
        if count == 300 and kind != "sparse":
            assert kept[0].sum() < 0.8 * count


def test_of_equal_boxes_the_first_is_kept() -> None:
    """Equal scores have an order too: that in which they come."""
    boxes = torch.tensor([10.0, 10.0, 30.0, 30.0]).expand(2, 6, 4)
    valid = torch.tensor([[True] * 6, [False, False, True, True, False, True]])
    kept = suppress(boxes, valid, 0.45)
    assert kept.nonzero().tolist() == [[0, 0], [1, 2]]
    assert suppress(boxes[:, :0], valid[:, :0], 0.45).shape == (2, 0)


def chain(count: int) -> Tensor:
    """[1, count, 4]: boxes in a row; each overlaps the next by 7/13, and no other above 4/16."""
    starts = torch.arange(count) * 3.0
    return torch.stack([starts, starts * 0, starts + 10, starts * 0 + 10], dim=1)[None]


def test_chains_up_to_the_rounds_are_exact() -> None:
    for count in range(1, ROUNDS + 2):
        valid = torch.ones(1, count, dtype=torch.bool)
        kept = suppress(chain(count), valid, 0.45)
        assert kept[0].tolist() == [index % 2 == 0 for index in range(count)]
        assert torch.equal(kept, greedy(chain(count), valid, 0.45))


def test_a_chain_beyond_the_rounds_loses_boxes_and_doubles_none() -> None:
    boxes = chain(40)
    assert ((box_iou(boxes[0], boxes[0]) > 0.45).sum(dim=1) - 1).tolist() == [1, *[2] * 38, 1]
    valid = torch.ones(1, 40, dtype=torch.bool)
    kept = suppress(boxes, valid, 0.45)
    assert kept[0].nonzero()[:, 0].tolist() == list(range(0, ROUNDS, 2))
    boxes = torch.cat([boxes, boxes.flip(1)])  # worst first: it begins at the other end
    assert torch.equal(suppress(boxes, valid.expand(2, -1), 0.45), kept.expand(2, -1))


@pytest.mark.parametrize("rounds", [1, 3, 5])
@pytest.mark.parametrize("kind", ["dense", "clusters", "whole numbers"])
def test_in_doubt_a_box_is_dropped(kind: str, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the rounds did not settle: no two kept boxes overlap, and all are greedy's own."""
    monkeypatch.setattr(models.detection, "ROUNDS", rounds)
    boxes = random_boxes(np.random.default_rng(12), 4, 200, kind)
    valid = torch.ones(4, 200, dtype=torch.bool)
    kept, exact = suppress(boxes, valid, 0.45), greedy(boxes, valid, 0.45)
    assert not (kept & ~exact).any()
    assert kept.any(dim=1).all()
    if rounds == 1:
        assert kept.sum() < exact.sum()
    for image_boxes, image_kept in zip(boxes, kept, strict=True):
        overlap = box_iou(image_boxes[image_kept], image_boxes[image_kept]).fill_diagonal_(0)
        assert not (overlap > 0.45).any()
