"""Anchors, matching and the MultiBox loss against plain loops written from method.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from models.anchors import anchor_grid, batched_iou, decode, encode, match
from models.multibox import MultiBoxLoss, Targets
from models.retinaface import Predictions

FRAME = 64
CPU = torch.device("cpu")


def slow_anchors(height: int, width: int) -> list[list[float]]:
    anchors = []
    for stride, sides in ((8, (16, 32)), (16, (64, 128)), (32, (256, 512))):
        for row in range(math.ceil(height / stride)):
            for column in range(math.ceil(width / stride)):
                for side in sides:
                    anchors.append([(column + 0.5) * stride, (row + 0.5) * stride, side, side])
    return anchors


ANCHORS = slow_anchors(FRAME, FRAME)


def slow_iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def slow_match(faces: list[list[float]], threshold: float = 0.35) -> list[int | None]:
    """The face of every anchor, None for background."""
    corners = [[cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2] for cx, cy, w, h in ANCHORS]
    real = [i for i, box in enumerate(faces) if box[2] > box[0] and box[3] > box[1]]
    chosen: list[int | None] = []
    for anchor in corners:
        best = max(real, key=lambda i: slow_iou(faces[i], anchor), default=None)
        enough = best is not None and slow_iou(faces[best], anchor) >= threshold
        chosen.append(best if enough else None)
    for i in real:  # the later face wins a contested anchor
        ious = [slow_iou(faces[i], anchor) for anchor in corners]
        chosen[ious.index(max(ious))] = i
    return chosen


def slow_loss(
    offsets: Tensor, logits: Tensor, faces: list[list[list[float]]], smoothing: float
) -> tuple[float, int]:
    """D(p, y) summed over the images but not yet divided, and the number of positives."""
    total, count = 0.0, 0
    for image, image_faces in enumerate(faces):
        chosen = slow_match(image_faces)
        background_loss, negatives = [], []
        for anchor, face in enumerate(chosen):
            l0, l1 = logits[image, anchor].tolist()
            highest = max(l0, l1)
            log_sum = highest + math.log(math.exp(l0 - highest) + math.exp(l1 - highest))
            losses = [log_sum - l0, log_sum - l1]  # -log p of background and face
            smooth = [(1 - smoothing) * loss + smoothing * sum(losses) / 2 for loss in losses]
            if face is None:
                background_loss.append(losses[0])
                negatives.append(smooth[0])
                continue
            count += 1
            total += smooth[1]
            x1, y1, x2, y2 = image_faces[face]
            cx, cy, w, h = ANCHORS[anchor]
            wanted = [
                ((x1 + x2) / 2 - cx) / (0.1 * w),
                ((y1 + y2) / 2 - cy) / (0.1 * h),
                math.log((x2 - x1) / w) / 0.2,
                math.log((y2 - y1) / h) / 0.2,
            ]
            for got, want in zip(offsets[image, anchor].tolist(), wanted, strict=True):
                error = abs(got - want)
                total += 2 * (0.5 * error**2 if error < 1 else error - 0.5)
        positives = len(chosen) - len(negatives)
        hardest = sorted(range(len(negatives)), key=lambda i: -background_loss[i])
        total += sum(negatives[i] for i in hardest[: 7 * positives])
    return total, count


def random_faces(rng: np.random.Generator, count: int, smallest: float = 1.5) -> list[list[float]]:
    sides = np.exp(rng.uniform(math.log(smallest), math.log(FRAME), (count, 2)))
    starts = rng.uniform(-0.3, 1.0, (count, 2)) * FRAME
    return np.concatenate([starts, starts + sides], axis=1).clip(0, FRAME + 20).tolist()


def targets(
    faces: list[list[list[float]]], padding: int = 0, dtype: torch.dtype = torch.float64
) -> Targets:
    """Pad to the largest count and `padding` more; the padding holds a box that must not count."""
    most = max(map(len, faces)) + padding
    boxes = torch.tensor([4.0, 4.0, 36.0, 36.0], dtype=dtype).repeat(len(faces), most, 1)
    present = torch.zeros(len(faces), most, dtype=torch.bool)
    for image, image_faces in enumerate(faces):
        for i, box in enumerate(image_faces):
            boxes[image, i] = torch.tensor(box, dtype=dtype)
            present[image, i] = True
    return Targets(boxes, present)


def random_predictions(batch: int, seed: int, dtype: torch.dtype = torch.float64) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, len(ANCHORS), 6, generator=generator, dtype=torch.float64) * 2
    values = values.to(dtype).requires_grad_()
    return Predictions(values[..., :4], values[..., 4:])


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 40), (33, 100)])
def test_anchors_against_a_loop(height: int, width: int) -> None:
    grid = anchor_grid(height, width, CPU)
    assert grid.tolist() == slow_anchors(height, width)


def test_decode_undoes_encode() -> None:
    anchors = anchor_grid(FRAME, FRAME, CPU).double()
    rng = np.random.default_rng(0)
    starts = rng.uniform(-50, 100, (3, len(anchors), 2))
    boxes = torch.tensor(np.concatenate([starts, starts + rng.uniform(0.5, 300, starts.shape)], 2))
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes)
    # By hand: a box of twice the anchor's width, its centre a tenth of the anchor to the right.
    anchor = torch.tensor([[20.0, 30.0, 40.0, 50.0]])
    offsets = encode(torch.tensor([[-16.0, 5.0, 64.0, 55.0]]), anchor)
    torch.testing.assert_close(offsets, torch.tensor([[1.0, 0.0, math.log(2) / 0.2, 0.0]]))


def test_overlap_against_a_loop() -> None:
    rng = np.random.default_rng(2)
    boxes = [random_faces(rng, 5), random_faces(rng, 5)]
    others = [[*random_faces(rng, 7), *batch[:2]] for batch in boxes]
    boxes[0][0] = [10.0, 10.0, 10.0, 40.0]  # no area
    boxes[1][1] = [40.0, 40.0, 10.0, 10.0]  # turned
    boxes[1][2] = [0.0, 0.0, 0.0, 0.0]  # padding
    others[1][0] = [0.0, 0.0, 0.0, 0.0]
    a = torch.tensor(boxes, dtype=torch.float64)
    b = torch.tensor(others, dtype=torch.float64)
    overlap = batched_iou(a, b)
    assert overlap.shape == (2, 5, 9)
    for image in (0, 1):
        assert torch.equal(batched_iou(a[image : image + 1], b)[image], overlap[image])
        for row, box in enumerate(boxes[image]):
            for column, other in enumerate(others[image]):
                empty = box[2] <= box[0] or other[2] <= other[0]
                expected = 0.0 if empty else slow_iou(box, other)
                assert overlap[image, row, column].item() == pytest.approx(expected, abs=1e-12)
    assert overlap.max() > 0.99


RNG = np.random.default_rng(1)
CROWD = random_faces(RNG, 300)
MATCH_CASES: dict[str, list[list[list[float]]]] = {
    "random": [random_faces(RNG, 6), random_faces(RNG, 1), random_faces(RNG, 3)],
    "tiny": [random_faces(RNG, 9, smallest=0.1)],
    "crowd beside an empty image": [CROWD, [], random_faces(RNG, 2)],
    "identical": [[[10.0, 12.0, 40.0, 44.0]] * 5, [[3.0, 3.0, 8.0, 9.0]] * 3],
    "no area": [
        [[10.0, 10.0, 10.0, 40.0], [5.0, 5.0, 30.0, 31.0], [9.0, 9.0, 9.0, 9.0]],
        [[20.0, 20.0, 50.0, 20.0]],
        [[40.0, 40.0, 10.0, 10.0]],  # turned
    ],
    "two faces want one anchor": [[[12.0, 12.0, 28.0, 28.0], [12.5, 12.5, 27.5, 27.5]]],
    "whole frame": [[[0.0, 0.0, 64.0, 64.0], [-200.0, -200.0, 300.0, 300.0]]],
    "no face anywhere": [[], []],
}


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("faces", MATCH_CASES.values(), ids=MATCH_CASES.keys())
def test_match_against_a_loop(faces: list[list[list[float]]], padding: int) -> None:
    given = targets(faces, padding)
    anchors = anchor_grid(FRAME, FRAME, CPU).double()
    positive, index = match(given.boxes, given.present, anchors, 0.35)
    assert positive.shape == index.shape == (len(faces), len(anchors))
    for image, image_faces in enumerate(faces):
        expected = slow_match(image_faces)
        assert positive[image].tolist() == [face is not None for face in expected]
        for anchor, face in enumerate(expected):
            found = int(index[image, anchor])
            if face is None:
                assert found == 0
            else:  # of identical faces any will do
                assert image_faces[found] == image_faces[face]


def test_the_later_face_wins_a_contested_anchor() -> None:
    anchors = anchor_grid(FRAME, FRAME, CPU).double()
    small, smaller = [12.0, 12.0, 28.0, 28.0], [12.5, 12.5, 27.5, 27.5]
    for faces in ([small, smaller], [smaller, small]):
        given = targets([faces])
        positive, index = match(given.boxes, given.present, anchors, 0.35)
        contested = int((anchors == torch.tensor([20.0, 20.0, 16.0, 16.0])).all(1).nonzero())
        assert positive[0, contested]
        assert index[0, contested] == 1


LOSS_CASES: dict[str, list[list[list[float]]]] = {
    "random": [random_faces(RNG, 4), random_faces(RNG, 1), random_faces(RNG, 7)],
    "one image is empty": [random_faces(RNG, 3), [], random_faces(RNG, 1)],
    "more negatives wanted than there are": [CROWD, random_faces(RNG, 2)],
    "no area": MATCH_CASES["no area"],
}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("faces", LOSS_CASES.values(), ids=LOSS_CASES.keys())
def test_loss_against_a_loop(faces: list[list[list[float]]], smoothing: float) -> None:
    predictions = random_predictions(len(faces), seed=2)
    loss = MultiBoxLoss()(predictions, targets(faces, padding=1), (FRAME, FRAME), smoothing)
    total, count = slow_loss(predictions.offsets, predictions.logits, faces, smoothing)
    assert count > 0
    assert loss.item() == pytest.approx(total / count, rel=1e-12)
    single = random_predictions(len(faces), seed=2, dtype=torch.float32)
    given = targets(faces, padding=1, dtype=torch.float32)
    loss = MultiBoxLoss()(single, given, (FRAME, FRAME), smoothing)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(total / count, rel=1e-5)


def test_loss_has_the_gradient_of_its_value() -> None:
    faces = LOSS_CASES["one image is empty"]
    predictions = random_predictions(len(faces), seed=3)
    given = targets(faces, padding=1)

    def loss(offsets: Tensor, logits: Tensor) -> Tensor:
        return MultiBoxLoss()(Predictions(offsets, logits), given, (FRAME, FRAME), 0.2)

    inputs = [value.detach().requires_grad_() for value in predictions[:2]]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def test_an_image_without_faces_contributes_nothing() -> None:
    faces = [random_faces(RNG, 3), [], random_faces(RNG, 2)]
    predictions = random_predictions(3, seed=4)
    loss = MultiBoxLoss()(predictions, targets(faces), (FRAME, FRAME), 0.2)
    offsets, logits = torch.autograd.grad(loss, [predictions.offsets, predictions.logits])
    for gradient in (offsets, logits):
        assert gradient[1].abs().max() == 0
        assert gradient[0].abs().max() > 0
        assert gradient[2].abs().max() > 0
    others = Predictions(predictions.offsets[[0, 2]], predictions.logits[[0, 2]])
    alone = MultiBoxLoss()(others, targets([faces[0], faces[2]]), (FRAME, FRAME), 0.2)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-12)


@pytest.mark.parametrize("padding", [0, 2])
def test_a_batch_without_faces_costs_nothing(padding: int) -> None:
    predictions = random_predictions(2, seed=5)
    loss = MultiBoxLoss()(predictions, targets([[], []], padding), (FRAME, FRAME), 0.2)
    assert loss.item() == 0
    gradients = torch.autograd.grad(loss, [predictions.offsets, predictions.logits])
    assert all(gradient.abs().max() == 0 for gradient in gradients)


def test_both_terms_are_divided_by_the_positives_of_the_batch() -> None:
    faces = [random_faces(RNG, 6), random_faces(RNG, 1)]
    predictions = random_predictions(2, seed=6)
    whole = MultiBoxLoss()(predictions, targets(faces), (FRAME, FRAME)).item()
    sums = []
    counts = []
    for image in (0, 1):
        part = Predictions(predictions.offsets[image : image + 1], predictions.logits[[image]])
        counts.append(sum(face is not None for face in slow_match(faces[image])))
        loss = MultiBoxLoss()(part, targets([faces[image]]), (FRAME, FRAME)).item()
        sums.append(loss * counts[-1])
    assert counts[0] != counts[1]
    assert whole == pytest.approx(sum(sums) / sum(counts), rel=1e-12)


ASSIGN_CASES = {**MATCH_CASES, **LOSS_CASES}


@pytest.mark.parametrize("faces", ASSIGN_CASES.values(), ids=ASSIGN_CASES.keys())
def test_assignment_against_a_loop(faces: list[list[list[float]]]) -> None:
    """Offsets are those of the matched face at positives and 0 elsewhere; one share for all."""
    given = targets(faces, padding=1)
    given.boxes.requires_grad_()
    assigned = MultiBoxLoss().assign(given, (FRAME, FRAME))
    for part in (assigned.positive, assigned.offsets, assigned.share):
        assert not part.requires_grad
    assert assigned.offsets.shape == (len(faces), len(ANCHORS), 4)
    count = 0
    for image, image_faces in enumerate(faces):
        chosen = slow_match(image_faces)
        assert assigned.positive[image].tolist() == [face is not None for face in chosen]
        expected = torch.zeros(len(ANCHORS), 4, dtype=torch.float64)
        for anchor, face in enumerate(chosen):
            if face is not None:
                count += 1
                x1, y1, x2, y2 = image_faces[face]
                cx, cy, side, _ = ANCHORS[anchor]
                move = [((x1 + x2) / 2 - cx) / side * 10, ((y1 + y2) / 2 - cy) / side * 10]
                size = [5 * math.log((x2 - x1) / side), 5 * math.log((y2 - y1) / side)]
                expected[anchor] = torch.tensor(move + size, dtype=torch.float64)
        torch.testing.assert_close(assigned.offsets[image], expected, rtol=1e-9, atol=1e-9)
    assert assigned.share.item() == max(count, 1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("faces", ASSIGN_CASES.values(), ids=ASSIGN_CASES.keys())
def test_one_assignment_serves_several_losses(
    faces: list[list[list[float]]], smoothing: float
) -> None:
    given = targets(faces, padding=1)
    loss_function = MultiBoxLoss()
    assigned = loss_function.assign(given, (FRAME, FRAME))
    for seed in (2, 3):
        predictions = random_predictions(len(faces), seed)
        inputs = [predictions.offsets, predictions.logits]
        once = loss_function(predictions, given, (FRAME, FRAME), smoothing)
        shared = loss_function.against(assigned, predictions, smoothing)
        assert shared.item() == once.item()
        slopes = [torch.autograd.grad(loss, inputs) for loss in (once, shared)]
        assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))


@pytest.mark.parametrize("present", [False, True])
def test_boxes_without_area_give_finite_values(present: bool) -> None:
    """A batch is padded with zeros, whose logarithm is infinite."""
    given = targets([[[10.0, 12.0, 40.0, 44.0]], []], padding=2)
    given.boxes[~given.present] = 0.0
    given.present[:, 1] = present
    predictions = random_predictions(2, seed=7)
    assigned = MultiBoxLoss().assign(given, (FRAME, FRAME))
    assert torch.isfinite(assigned.offsets).all()
    assert assigned.positive[0].any()
    assert not assigned.positive[1].any()
    loss = MultiBoxLoss().against(assigned, predictions)
    gradients = torch.autograd.grad(loss, [predictions.offsets, predictions.logits])
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    alone = MultiBoxLoss()(predictions, targets([[[10.0, 12.0, 40.0, 44.0]], []]), (FRAME, FRAME))
    assert loss.item() == alone.item()


def test_predictions_in_half_precision_are_compared_in_full() -> None:
    """Critic passes may run in bfloat16; its three digits must not enter the sums."""
    faces = LOSS_CASES["random"]
    coarse = random_predictions(len(faces), seed=8, dtype=torch.bfloat16)
    given = targets(faces, padding=1, dtype=torch.float32)
    loss = MultiBoxLoss()(coarse, given, (FRAME, FRAME), 0.2)
    assert loss.dtype == torch.float32
    total, count = slow_loss(coarse.offsets, coarse.logits, faces, 0.2)
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, coarse.logits)
    assert gradient.dtype == torch.bfloat16
    assert gradient.any()
