from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

import models.detection
from models.anchors import anchor_grid, decode, encode
from models.detection import (
    MAX_CANDIDATES,
    DetectionError,
    detect,
    pseudo_labels,
)
from models.retinaface import Predictions, RetinaFace
from models.weights import load_weights
from utils.face_dataset import wider_source
from utils.image_files import read_photo
from utils.widerface import photo_path

FRAME = 64
ANCHORS = anchor_grid(FRAME, FRAME, torch.device("cpu"))


class Says(RetinaFace):
    """Answers with what it was told, whatever the image."""

    def __init__(self, offsets: Tensor, logits: Tensor) -> None:
        super().__init__()
        self.told = Predictions(offsets, logits)
        self.eval()

    def forward(self, images: Tensor, landmarks: bool = False) -> Predictions:
        assert len(images) == len(self.told.logits)
        return self.told


class Remembers(RetinaFace):
    """Keeps its last answer."""

    last: Predictions

    def forward(self, images: Tensor, landmarks: bool = False) -> Predictions:
        self.last = super().forward(images, landmarks)
        return self.last


def iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])).clip(min=0)
    areas = [float((box[2:] - box[:2]).prod()) for box in (a, b)]
    return float(sides.prod()) / (sum(areas) - float(sides.prod()))


def surviving(boxes: np.ndarray, scores: np.ndarray, limit: float) -> list[int]:
    """Greedy non-maximum suppression, by the book."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if all(iou(boxes[index], boxes[other]) <= limit for other in kept):
            kept.append(int(index))
    return kept


def answers(batch: int) -> tuple[Tensor, Tensor]:
    """No face anywhere: logits of background and face far apart."""
    offsets = torch.zeros(batch, len(ANCHORS), 4)
    logits = torch.tensor([8.0, -8.0]).repeat(batch, len(ANCHORS), 1)
    return offsets, logits


def test_the_threshold_is_on_the_logit() -> None:
    offsets, logits = answers(1)
    far_apart = [0, 14, 112]  # the first and the last 16 px anchor of a row; one in the last row
    for anchor, background, face in zip(
        far_apart, (5.0, -10.0, -3.0), (0.011, -1.0, 0.009), strict=True
    ):
        logits[0, anchor] = torch.tensor([background, face])
    probability = logits[0, far_apart].softmax(dim=-1)[:, 1]
    assert probability[0] < 0.01
    assert probability[1] > 0.99
    found = pseudo_labels(Says(offsets, logits), torch.zeros(1, 3, FRAME, FRAME), 0.01, 0.45)
    assert found.present[0].tolist() == [True] + [False] * (found.boxes.shape[1] - 1)
    assert found.boxes[found.present].tolist() == [[-4.0, -4.0, 12.0, 12.0]]


def test_pseudo_labels_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = 5
    offsets = torch.randn(batch, len(ANCHORS), 4, generator=generator)
    logits = torch.randn(batch, len(ANCHORS), 2, generator=generator)
    logits[1] = -1.0  # nothing is found here
    logits[3, 5:] = -1.0  # little
    logits[3, 0, 1] = 1.0
    found = pseudo_labels(Says(offsets, logits), torch.zeros(batch, 3, FRAME, FRAME), 0.01, 0.45)
    counts = found.present.sum(dim=1).tolist()
    assert counts[1] == 0
    assert 1 <= counts[3] <= 5
    for image in range(batch):
        chosen = (logits[image, :, 1] >= 0.01).nonzero()[:, 0]
        anchors = ANCHORS[chosen].double().numpy()
        moves = offsets[image, chosen].double().numpy()
        centre = anchors[:, :2] + 0.1 * moves[:, :2] * anchors[:, 2:]
        half = anchors[:, 2:] * np.exp(0.2 * moves[:, 2:]) / 2
        boxes = np.concatenate([centre - half, centre + half], axis=1)
        expected = boxes[surviving(boxes, logits[image, chosen, 1].numpy(), 0.45)]
        got = found.boxes[image][found.present[image]].numpy()
        np.testing.assert_allclose(np.sort(got, axis=0), np.sort(expected, axis=0), atol=1e-3)
        assert found.present[image, : counts[image]].all()  # packed to the left


def labels_of(
    predictions: Predictions, anchors: Tensor, most: int = MAX_CANDIDATES
) -> list[Tensor]:
    """The boxes of each image, best first: threshold 0.01, strongest, torchvision's nms."""
    found = []
    for offsets, logits in zip(predictions.offsets, predictions.logits[..., 1], strict=True):
        chosen = (logits >= 0.01).nonzero()[:, 0]
        chosen = chosen[logits[chosen].argsort(descending=True)[:most]]
        boxes = decode(offsets[chosen], anchors[chosen])
        found.append(boxes[nms(boxes, logits[chosen], 0.45)])
    return found


def random_answers(batch: int, seed: int, spread: float = 1.0) -> Predictions:
    random = torch.Generator().manual_seed(seed)
    offsets = torch.randn(batch, len(ANCHORS), 4, generator=random) * spread
    logits = torch.randn(batch, len(ANCHORS), 2, generator=random)
    logits[0, 3:, 1] = -1.0  # few candidates, if any
    return Predictions(offsets, logits)


@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_pseudo_labels_against_torchvision(seed: int, spread: float) -> None:
    told = random_answers(4, seed, spread)
    found = pseudo_labels(Says(*told[:2]), torch.zeros(4, 3, FRAME, FRAME), 0.01, 0.45)
    for boxes, present, expected in zip(
        found.boxes, found.present, labels_of(told, ANCHORS), strict=True
    ):
        assert present.sum() == len(expected)
        torch.testing.assert_close(boxes[: len(expected)], expected)  # packed, best first


@pytest.mark.parametrize("most", [1, 5, 40])
def test_of_too_many_candidates_the_strongest_count(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = random_answers(3, seed=9)
    monkeypatch.setattr(models.detection, "MAX_CANDIDATES", most)
    found = pseudo_labels(Says(*told[:2]), torch.zeros(3, 3, FRAME, FRAME), 0.01, 0.45)
    assert found.boxes.shape == (3, most, 4)
    expected = labels_of(told, ANCHORS, most)
    assert len(expected[1]) < len(labels_of(told, ANCHORS)[1])
    for boxes, present, wanted in zip(found.boxes, found.present, expected, strict=True):
        torch.testing.assert_close(boxes[present], wanted)


@pytest.mark.parametrize("most", [1, 4])
def test_of_too_many_faces_the_best_are_kept(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    told = random_answers(3, seed=10)
    monkeypatch.setattr(models.detection, "MAX_FACES", most)
    found = pseudo_labels(Says(*told[:2]), torch.zeros(3, 3, FRAME, FRAME), 0.01, 0.45)
    assert found.boxes.shape == (3, most, 4)
    expected = labels_of(told, ANCHORS)
    assert len(expected[1]) > most
    for boxes, present, wanted in zip(found.boxes, found.present, expected, strict=True):
        torch.testing.assert_close(boxes[present], wanted[:most])


def test_images_without_a_find_have_no_box() -> None:
    found = pseudo_labels(Says(*answers(3)), torch.zeros(3, 3, FRAME, FRAME), 0.01, 0.45)
    assert not found.present.any()
    assert found.boxes.shape[0] == found.present.shape[0] == 3


def test_detections_are_clipped_scored_and_sorted() -> None:
    offsets, logits = answers(1)
    wanted = {0: (0.6, [-9.0, -3.0, 12.0, 14.0]), 14: (0.9, [50.0, 2.0, 70.0, 18.0])}
    for anchor, (probability, box) in wanted.items():
        logits[0, anchor, 1] = logits[0, anchor, 0] + np.log(probability / (1 - probability))
        offsets[0, anchor] = encode(torch.tensor([box]), ANCHORS[[anchor]])[0]
    image = np.zeros((FRAME, FRAME, 3), dtype=np.uint8)
    boxes, scores = detect(Says(offsets, logits), image, 0.5, 0.4)
    np.testing.assert_allclose(boxes, [[50, 2, 64, 18], [0, 0, 12, 14]], atol=1e-4)
    np.testing.assert_allclose(scores, [0.9, 0.6], atol=1e-6)
    assert boxes.dtype == scores.dtype == np.float64
    boxes, scores = detect(Says(offsets, logits), image, 0.7, 0.4)
    assert len(boxes) == len(scores) == 1
    boxes, scores = detect(Says(offsets, logits), image, 0.95, 0.4)
    assert boxes.shape == (0, 4)
    assert scores.shape == (0,)


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_detector_that_answers_nonsense_is_not_believed(part: int, bad: float) -> None:
    """NaN is above no score: without a look at it, the photo would pass for one without faces."""
    told = answers(1)
    told[part][0, 7] = bad
    image = np.zeros((FRAME, FRAME, 3), dtype=np.uint8)
    with pytest.raises(DetectionError, match="not finite"):
        detect(Says(*told), image, 0.5, 0.4)


@pytest.fixture(scope="module")
def released(shared: Path) -> Remembers:
    critic = Remembers()
    load_weights(critic, shared / "weights" / "retinaface_mobilenet0.25.pth")
    return critic.eval()


def test_pseudo_labels_are_about_as_many_as_labels(shared: Path, released: Remembers) -> None:
    source = wider_source(shared / "widerface", "train")
    labelled = found = above_one_percent = 0
    for photo in source.photos[::60]:
        pixels = read_photo(photo_path(source.images_dir, photo.path)).pixels
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        found += int(pseudo_labels(released, image, 0.01, 0.45).present.sum())
        labelled += len(photo.boxes)
        above_one_percent += int((released.last.logits.softmax(dim=-1)[..., 1] >= 0.01).sum())
    assert labelled > 40
    assert labelled / 2 < found < labelled * 2
    # What thresholding the probability at that number would have let through.
    assert above_one_percent > 20 * found


def test_pseudo_labels_of_photos_against_torchvision(shared: Path, released: Remembers) -> None:
    """The crowded photos among them: all settle within the rounds."""
    source = wider_source(shared / "widerface", "train")
    crowded = sorted(source.photos, key=lambda photo: -len(photo.boxes))[:3]
    frames = [
        cv2.resize(read_photo(photo_path(source.images_dir, photo.path)).pixels, (512, 448))
        for photo in [*crowded, *source.photos[:2]]
    ]
    images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()
    found = pseudo_labels(released, images, 0.01, 0.45)
    expected = labels_of(released.last, anchor_grid(448, 512, torch.device("cpu")))
    assert min(map(len, expected)) > 0
    assert max(map(len, expected)) > 30
    for boxes, present, wanted in zip(found.boxes, found.present, expected, strict=True):
        torch.testing.assert_close(boxes[present], wanted)
        assert not present[len(wanted) :].any()
