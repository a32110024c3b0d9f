from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from models.anchors import anchor_grid, encode
from models.retinaface import Predictions, RetinaFace
from models.training_pictures import IMAGES, comparison

FRAME = 64
GAP = 4  # px between and around the pictures
CELL = FRAME + GAP
LIME, RED = (0, 255, 0), (255, 0, 0)


class FindsOnBright(RetinaFace):
    """Finds one box, in images that are brighter than 100, and nothing elsewhere."""

    def __init__(self, box: list[float]) -> None:
        super().__init__()
        anchors = anchor_grid(FRAME, FRAME, torch.device("cpu"))
        self.offsets = torch.zeros(len(anchors), 4)
        self.offsets[0] = encode(torch.tensor([box]), anchors[:1])[0]
        self.modes: list[bool] = []

    def forward(self, images: Tensor, landmarks: bool = False) -> Predictions:
        self.modes.append(self.training)
        logits = torch.full((len(images), len(self.offsets), 2), -9.0)
        logits[images.mean(dim=(1, 2, 3)) > 100, 0, 1] = 9.0
        return Predictions(self.offsets.expand(len(images), -1, -1), logits)


def flat_images(*levels: float) -> Tensor:
    return (
        torch.tensor(levels, dtype=torch.float32)[:, None, None, None]
        .expand(-1, 3, FRAME, FRAME)
        .clone()
    )


def cell(picture: Tensor, row: int, column: int) -> Tensor:
    """One picture of the grid, [H, W, 3]."""
    y, x = GAP + row * CELL, GAP + column * CELL
    return picture[:, y : y + FRAME, x : x + FRAME].permute(1, 2, 0)


def colour(picture: Tensor, y: int, x: int) -> tuple[int, ...]:
    return tuple(picture[y, x].tolist())


def test_an_image_a_row_and_a_version_a_column() -> None:
    versions = [flat_images(10, 20, 30), flat_images(40.4, 50.6, 60), flat_images(-7, 80, 300)]
    picture = comparison(versions, {})
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 3 * CELL + GAP, 3 * CELL + GAP)
    for row, levels in enumerate([(10, 40, 0), (20, 51, 80), (30, 60, 255)]):
        for column, level in enumerate(levels):
            assert (cell(picture, row, column) == level).all()
    assert comparison(versions[:1], {}).shape == (3, 3 * CELL + GAP, CELL + GAP)


def test_pixels_stay_where_they_are() -> None:
    images = torch.randint(0, 256, (2, 3, 40, FRAME)).float()
    picture = comparison([images, images.flip(3)], {})
    assert picture.shape == (3, 2 * (40 + GAP) + GAP, 2 * CELL + GAP)
    for row in (0, 1):
        rows = slice(GAP + row * (40 + GAP), (row + 1) * (40 + GAP))
        assert torch.equal(picture[:, rows, GAP:CELL], images[row].byte())
        assert torch.equal(picture[:, rows, CELL + GAP : -GAP], images[row].flip(2).byte())


def test_boxes_are_drawn_where_each_detector_finds_them() -> None:
    versions = [flat_images(20, 120), flat_images(140, 30)]
    first, second = FindsOnBright([4.0, 8, 40, 50]), FindsOnBright([20.0, 30, 60, 60])
    picture = comparison(versions, {"critic": first, "adversary": second})
    for row, column, level in ((0, 0, 20), (1, 1, 30)):  # too dark to find anything
        assert (cell(picture, row, column) == level).all()
    for row, column, level in ((0, 1, 140), (1, 0, 120)):
        shown = cell(picture, row, column)
        assert colour(shown, 49, 10) == colour(shown, 20, 5) == LIME  # the lower and left edge
        assert colour(shown, 59, 50) == colour(shown, 45, 59) == RED
        assert colour(shown, 4, 2) == colour(shown, 62, 62) == (level,) * 3  # outside of both
        assert colour(shown, 46, 16) == (level,) * 3  # inside the first
        # The first is drawn first: where both have an edge, it lies below.
        assert colour(shown, 31, 38) == RED
    swapped = comparison(versions, {"critic": second, "adversary": first})
    assert colour(cell(swapped, 0, 1), 59, 50) == LIME
    assert colour(cell(swapped, 0, 1), 20, 5) == RED


@pytest.mark.parametrize(
    ("box", "seen"),
    [
        ([-30.0, -20, 40, 50], [(49, 10), (30, 39), (30, 0), (0, 30)]),
        ([30.0, 30, 90, 100], [(63, 50), (50, 63), (50, 30)]),
        ([-90.0, 10, -30, 50], []),
        ([70.0, 70, 90, 90], []),
    ],
)
def test_boxes_beyond_the_frame(box: list[float], seen: list[tuple[int, int]]) -> None:
    """Their edges are drawn along the frame's; a box wholly outside is not."""
    shown = cell(comparison([flat_images(200, 0)], {"critic": FindsOnBright(box)}), 0, 0)
    assert all(colour(shown, y, x) == LIME for y, x in seen)
    assert bool(seen) == bool((shown != 200).any())


def test_of_a_large_batch_the_first_images_are_drawn() -> None:
    levels = [10.0 * number for number in range(IMAGES + 3)]
    picture = comparison([flat_images(*levels)], {"critic": FindsOnBright([4.0, 4, 20, 20])})
    assert picture.shape == (3, IMAGES * CELL + GAP, CELL + GAP)
    assert [int(cell(picture, row, 0)[0, 0, 0]) for row in range(IMAGES)] == levels[:IMAGES]


@pytest.mark.parametrize("training", [False, True])
def test_detectors_are_left_as_they_were(training: bool) -> None:
    """They look in eval mode, then go on as before; an adversary in training learns nothing."""
    images = torch.rand(2, 3, FRAME, FRAME) * 255
    detector = RetinaFace().train(training)
    before = copy.deepcopy(detector.state_dict())
    comparison([images, images], {"adversary": detector})
    assert {module.training for module in detector.modules()} == {training}
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), name
    watched = FindsOnBright([4.0, 4, 20, 20]).train(training)
    comparison([images, images], {"adversary": watched})
    assert watched.modes == [False, False]
    assert watched.training is training
