"""Photos searched at several sizes, and several photos at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

import models.detection
from models.anonymize import find_faces, find_faces_of
from models.detection import (
    GRID,
    DetectionError,
    detect,
    detect_passes,
    fold_batch_norms,
    join_passes,
    pass_sizes,
    within_reach,
)
from models.retinaface import Predictions, RetinaFace
from models.weights import DETECTOR, load_retinaface
from utils.boxes import Boxes
from utils.config import load_config
from utils.image_files import Pixels, read_photo
from utils.prediction_files import Detections
from utils.widerface import photo_path, read_labels

SAMPLES = Path(__file__).resolve().parents[1] / "img" / "samples"
NAMES = ("grace_hopper", "eileen_collins")
NMS_IOU = 0.4


@pytest.fixture(scope="module")
def detector() -> RetinaFace:
    return load_retinaface(DETECTOR).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folded() -> RetinaFace:
    """The detector as the anonymiser uses it."""
    network = load_retinaface(DETECTOR).eval().requires_grad_(False)
    fold_batch_norms(network)
    return network


def sample(name: str) -> Pixels:
    return read_photo(SAMPLES / f"{name}.jpg").pixels


def resized(image: Pixels, zoom: float) -> Pixels:
    smooth = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    small = cv2.resize(np.ascontiguousarray(image), None, fx=zoom, fy=zoom, interpolation=smooth)
    return np.asarray(small, dtype=np.uint8)


def face_of(detector: RetinaFace, image: Pixels) -> Boxes:
    """The one face of a sample, (x1, y1, x2, y2)."""
    boxes, scores = detect(detector, image, 0.9, NMS_IOU)
    assert len(scores) == 1
    return boxes[0]


def config(**changes: object) -> Mapping[str, Any]:
    return load_config(overrides=[f"detect.{key}={value}" for key, value in changes.items()])


def best_overlaps(faces: Boxes, found: Boxes) -> np.ndarray:
    """The highest IoU of each face, [N, 4], with one that was found, [M, 4]."""
    iou = box_iou(torch.from_numpy(faces), torch.from_numpy(found)).numpy()
    return np.asarray(iou.max(axis=1, initial=0.0))


def test_the_sizes_of_the_passes() -> None:
    assert pass_sizes(768, 1024, 2, 4096, 160) == [
        (1536, 2048),
        (768, 1024),
        (384, 512),
        (192, 256),
    ]
    assert pass_sizes(768, 1024, 1, 4096, 320) == [(768, 1024), (384, 512)]
    assert pass_sizes(6000, 3000, 2, 4096, 2048) == [(4096, 2048), (2048, 1024)]
    assert pass_sizes(40, 30, 1, 4096, 160) == [(40, 30)]  # never none
    assert pass_sizes(1, 10_000, 2, 4096, 3000) == [(1, 4096)]


@pytest.mark.parametrize(("height", "share"), [(10, 0.8), (12, 1.0)])
@pytest.mark.parametrize("name", NAMES)
def test_faces_of_ten_pixels_are_found(
    folded: RetinaFace, name: str, height: int, share: float
) -> None:
    """A contact sheet; the first pass is what finds them."""
    photo = sample(name)
    face = face_of(folded, photo)
    zoom = height / (face[3] - face[1])
    small = resized(photo, zoom)
    rows, columns = 160 // small.shape[0], 240 // small.shape[1]
    corners = np.array([(x, y) for y in range(rows) for x in range(columns)])
    steps = np.tile(corners * [small.shape[1], small.shape[0]], 2)
    faces = face * zoom + steps
    sheet = np.tile(small, (rows, columns, 1))
    found, _ = find_faces(folded, sheet, config(enlarge=1))
    assert len(faces) >= 12
    assert (best_overlaps(faces, found) > 0.5).mean() >= share
    at_own_size, _ = find_faces(folded, sheet, config(enlarge=1, zoom=1))
    assert (best_overlaps(faces, at_own_size) > 0.5).mean() < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_a_face_that_fills_the_frame_is_found(folded: RetinaFace, name: str) -> None:
    """The last passes are what finds it; a large one shows the network no more than parts."""
    photo = sample(name)
    x1, y1, x2, y2 = face_of(folded, photo).round().astype(int)
    large = resized(photo[y1:y2, x1:x2], 600 / (y2 - y1))
    frame = np.array([[0.0, 0.0, large.shape[1], large.shape[0]]])
    found, scores = find_faces(folded, large, config(enlarge=1))
    assert best_overlaps(frame, found[:1])[0] > 0.8  # the surest
    assert scores[0] > 0.9
    in_part, _ = find_faces(folded, large, config(enlarge=1, shortest_pass=640))
    assert best_overlaps(frame, in_part)[0] < 0.5


def test_larger_photos_are_searched_at_the_limit(folded: RetinaFace) -> None:
    photo = sample("grace_hopper")
    face = face_of(folded, photo)[None] * 4
    found, _ = find_faces(folded, resized(photo, 4), config(longest_side=320, enlarge=1))
    assert best_overlaps(face, found)[0] > 0.8


def test_boxes_are_enlarged_by_the_factor(folded: RetinaFace) -> None:
    photo = sample("eileen_collins")
    plain, _ = find_faces(folded, photo, config(enlarge=1))
    large, _ = find_faces(folded, photo, config(enlarge=1.5))
    np.testing.assert_allclose(large[:, 2:] - large[:, :2], 1.5 * (plain[:, 2:] - plain[:, :2]))
    np.testing.assert_allclose(large[:, 2:] + large[:, :2], plain[:, 2:] + plain[:, :2])


class Records(RetinaFace):
    """Finds nothing, and keeps what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.eval()

    def forward(self, images: Tensor, landmarks: bool = False) -> Predictions:
        self.seen.append(images)
        anchors = sum(2 * -(-images.shape[2] // s) * -(-images.shape[3] // s) for s in (8, 16, 32))
        nothing = torch.tensor([8.0, -8.0]).expand(len(images), anchors, 2)
        return Predictions(torch.zeros(len(images), anchors, 4), nothing)


def test_every_pass_is_made_and_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.detection, "BATCH_PIXELS", {"cpu": 5 * 128 * 192})
    records = Records()
    photos = [np.full((100 + number, 170, 3), number, dtype=np.uint8) for number in range(12)]
    photos.append(np.full((700, 900, 3), 99, dtype=np.uint8))  # one pass is above the limit
    settings = config(zoom=1, shortest_pass=40, flip=True)
    found = find_faces_of(records, photos, settings)
    assert [len(boxes) for boxes, _ in found] == [0] * 13
    passes = [pass_sizes(*photo.shape[:2], 1, 4096, 40) for photo in photos]
    shown = [frame for batch in records.seen for frame in batch]
    assert len(shown) == 2 * sum(map(len, passes))
    for batch in records.seen:
        assert batch.shape[2] % GRID == batch.shape[3] % GRID == 0
        pixels = len(batch) * batch.shape[2] * batch.shape[3]
        assert len(batch) == 1 or pixels <= 5 * 128 * 192
    largest = max(len(batch) for batch in records.seen if batch.shape[2:] == (128, 192))
    assert largest == 5
    for number, (photo, sizes) in enumerate(zip(photos, passes, strict=True)):
        value = int(photo[0, 0, 0])
        mine = [frame for frame in shown if frame[0, 0, 0] == value]
        assert len(mine) == 2 * len(sizes), number
        areas = sorted(int((frame == value).all(dim=0).sum()) for frame in mine)
        assert areas == sorted(2 * [height * width for height, width in sizes])
    records.seen.clear()
    find_faces_of(records, photos[:1], config(zoom=1, shortest_pass=40))
    assert sum(map(len, records.seen)) == len(passes[0])


def assert_same(ones: Detections, others: Detections, atol: float) -> None:
    assert len(ones[1]) == len(others[1])
    np.testing.assert_allclose(ones[0], others[0], atol=atol)
    np.testing.assert_allclose(ones[1], others[1], atol=1e-4)


def test_photos_searched_together_as_one_by_one(
    folded: RetinaFace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.detection, "BATCH_PIXELS", {"cpu": 1 << 22})
    hopper, collins = map(sample, NAMES)
    photos = [hopper, collins, hopper[:, ::-1], collins[:300], resized(hopper, 0.3), collins[::-1]]
    numbers = config(shortest_pass=100)
    together = find_faces_of(folded, photos, numbers)
    assert sum(len(scores) for _, scores in together) >= 5
    for photo, found in zip(photos, together, strict=True):
        assert_same(find_faces(folded, photo, numbers), found, atol=1e-2)
    assert find_faces_of(folded, [], numbers) == []


def assert_padding_is_harmless(detector: RetinaFace, photo: Pixels) -> int:
    """Faces found with and without the filling are the same; returns their number."""
    plain = detect(detector, photo, 0.3, NMS_IOU)
    filled = detect_passes(detector, [photo], [[photo.shape[:2]]], 0.3, NMS_IOU)[0][0]
    for ones, others in ((plain, filled), (filled, plain)):
        # What is at the threshold by a hair may fall on either side of it.
        sure = ones[0][ones[1] > 0.5]
        assert (best_overlaps(sure, others[0]) > 0.7).all()
    assert (filled[0] >= 0).all()
    assert (filled[0] <= [photo.shape[1], photo.shape[0]] * 2).all()
    assert (filled[0][:, 2:] > filled[0][:, :2]).all()
    return len(filled[0])


@pytest.mark.parametrize("name", NAMES)
def test_the_filling_neither_adds_nor_loses_faces(folded: RetinaFace, name: str) -> None:
    """Also not where a face touches the photo's edge, beyond which the filling starts."""
    photo = sample(name)
    x1, _, x2, y2 = face_of(folded, photo).round().astype(int)
    for right, bottom in ((x2 + 40, y2 + 9), (x2, y2), (x2 - (x2 - x1) // 4, y2 + 21)):
        cut = np.ascontiguousarray(photo[:bottom, :right])
        assert cut.shape[0] % GRID or cut.shape[1] % GRID
        assert assert_padding_is_harmless(folded, cut) >= 1


def test_the_filling_does_not_matter_on_photos_of_crowds(folded: RetinaFace, shared: Path) -> None:
    root = shared / "widerface"
    labels = read_labels(root / "val" / "label.txt")
    crowded = sorted(labels, key=lambda photo: -len(photo.boxes))[:4]
    faces = 0
    for photo in crowded:
        pixels = read_photo(photo_path(root / "val" / "images", photo.path)).pixels
        faces += assert_padding_is_harmless(folded, pixels[: 601 if len(pixels) > 601 else None])
    assert faces > 40


class BreaksOn(Records):
    """Answers NaN for a frame whose first pixel has this value."""

    def __init__(self, value: int) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor, landmarks: bool = False) -> Predictions:
        offsets, logits, _ = super().forward(images)
        broken = (images[:, 0, 0, 0] == self.value)[:, None, None]
        return Predictions(offsets, logits.masked_fill(broken, torch.nan))


def test_one_broken_photo_fails_the_batch_and_alone_only_itself() -> None:
    breaks = BreaksOn(7)
    photos = [np.full((64, 64, 3), value, dtype=np.uint8) for value in (6, 7, 8)]
    with pytest.raises(DetectionError, match="not finite"):
        find_faces_of(breaks, photos, config())
    for photo, is_broken in zip(photos, (False, True, False), strict=True):
        if is_broken:
            with pytest.raises(DetectionError, match="not finite"):
                find_faces(breaks, photo, config())
        else:
            assert len(find_faces(breaks, photo, config())[0]) == 0


def test_mirrored_passes_come_back_the_right_way_round(folded: RetinaFace) -> None:
    photo = np.ascontiguousarray(sample("eileen_collins")[:, :397])
    size = [photo.shape[:2], (400, 310)]
    plain, half, mirrored, half_mirrored = detect_passes(
        folded, [photo], [size], 0.5, NMS_IOU, flip=True
    )[0]
    for other in (half, mirrored, half_mirrored):
        assert len(other[0]) == len(plain[0]) == 1
        assert best_overlaps(plain[0], other[0])[0] > 0.8


def test_large_finds_count_in_the_last_pass_alone() -> None:
    box = np.array([[100.0, 100.0, 300.0, 300.0], [0.0, 0.0, 10.0, 10.0]])
    finds = (box, np.array([0.9, 0.8]))
    sizes = [(800, 400), (400, 200), (200, 100)]  # of a photo of 400 x 200
    reached = within_reach([finds] * 6, sizes, 400, 128)
    assert [len(scores) for _, scores in reached] == [1, 1, 2] * 2
    assert [len(scores) for _, scores in within_reach([finds] * 3, sizes, 400, 200)] == [1, 2, 2]


def joined_by_a_loop(passes: Sequence[Detections]) -> Boxes:
    boxes = np.concatenate([boxes for boxes, _ in passes])
    scores = np.concatenate([scores for _, scores in passes])
    kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), NMS_IOU).numpy()
    joined = boxes[kept]
    for box in boxes:
        overlaps = box_iou(torch.from_numpy(box[None]), torch.from_numpy(boxes[kept]))[0].numpy()
        if overlaps.max() > NMS_IOU:
            best = overlaps.argmax()
            joined[best, :2] = np.minimum(joined[best, :2], box[:2])
            joined[best, 2:] = np.maximum(joined[best, 2:], box[2:])
    return joined


@pytest.mark.parametrize("at_once", [1, 7, 1024])
def test_passes_are_joined_as_by_a_loop(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.detection, "JOINED_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    passes = []
    for count in (40, 0, 60):
        corners, sides = rng.uniform(0, 60, (count, 2)), rng.uniform(8, 30, (count, 2))
        passes.append((np.concatenate([corners, corners + sides], axis=1), rng.random(count)))
    copies = [(boxes.copy(), scores.copy()) for boxes, scores in passes]
    joined, scores = join_passes(passes, NMS_IOU)
    expected = joined_by_a_loop(passes)
    assert 5 < len(expected) < 90
    np.testing.assert_array_equal(joined, expected)
    assert (np.diff(scores) <= 0).all()
    for given, copy in zip(passes, copies, strict=True):
        np.testing.assert_array_equal(given[0], copy[0])
    nothing = join_passes(passes[1:2], NMS_IOU)
    assert nothing[0].shape == (0, 4)
    assert nothing[1].shape == (0,)


def test_folded_norms_change_nothing_but_rounding(detector: RetinaFace, folded: RetinaFace) -> None:
    image = torch.from_numpy(sample("grace_hopper")[:200, :233]).permute(2, 0, 1)[None]
    before, after = detector(image), folded(image)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    assert any(isinstance(part, nn.BatchNorm2d) for part in detector.modules())
    torch.testing.assert_close(after.logits, before.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.offsets, before.offsets, atol=1e-4, rtol=1e-4)
