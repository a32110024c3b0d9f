"""The plain step of tests/benchmarks and the `higher` package against the objectives in models/.

Two implementations that share the networks and the box encoding only; in double precision, on
RetinaFace itself, with an adversary whose optimizer has moments.
"""

from __future__ import annotations

import copy
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from models.anchors import anchor_grid
from models.detection import pseudo_labels
from models.multibox import Targets
from models.objectives import review_loss
from models.redraw import redraw_whole_frame
from models.retinaface import Predictions
from tests.benchmarks import plain_step
from tests.objective_scene import DOUBLE, FRAME, LOSS, Scene
from utils.config import load_config

CONFIG = load_config()
oracle = pytest.mark.skipif(
    find_spec("higher") is None,
    reason="needs `higher`: pip install -r tests/benchmarks/requirements.txt",
)


def per_image(targets: Targets) -> list[Tensor]:
    return [boxes[keep] for boxes, keep in zip(targets.boxes, targets.present, strict=True)]


def padded(faces: list[Tensor]) -> Targets:
    boxes = nn.utils.rnn.pad_sequence(faces, batch_first=True)
    counts = torch.tensor([len(f) for f in faces])
    return Targets(boxes, torch.arange(boxes.shape[1]) < counts[:, None])


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest error relative to the largest value."""
    assert expected.abs().max() > 0
    return float((got - expected).abs().max() / expected.abs().max())


def random_faces(random: torch.Generator, count: int) -> Tensor:
    """[count, 4] in and around the frame; the sides range from 1 px to the frame's."""
    sides = FRAME ** torch.rand(count, 2, generator=random, dtype=DOUBLE)
    starts = (torch.rand(count, 2, generator=random, dtype=DOUBLE) * 1.2 - 0.2) * FRAME
    return torch.cat([starts, starts + sides], dim=1)


@pytest.mark.parametrize("counts", [(3, 1, 8), (2, 0, 5), (200, 4, 0), (0, 0)], ids=str)
def test_loss_of_random_predictions(counts: tuple[int, ...]) -> None:
    random = torch.Generator().manual_seed(sum(counts))
    faces = [random_faces(random, count) for count in counts]
    if len(faces[0]) > 1:
        faces[0][0, 2] = faces[0][0, 0]  # without area: no face
    anchors = len(anchor_grid(FRAME, FRAME, torch.device("cpu")))
    values = torch.randn(len(counts), anchors, 6, generator=random, dtype=DOUBLE) * 2
    values.requires_grad_()
    predictions = Predictions(values[..., :4], values[..., 4:])
    frame = (FRAME, FRAME)
    for smoothing in (0.0, 0.2):
        expected = LOSS(predictions, padded(faces), frame, smoothing)
        options = CONFIG["multibox"]
        got = plain_step.multibox_loss(predictions, faces, frame, options, smoothing)
        assert got.item() == pytest.approx(expected.item(), rel=1e-12)
        slopes = [torch.autograd.grad(loss, values)[0] for loss in (got, expected)]
        torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-14)
        assert bool(slopes[0].any()) == any(counts)


@pytest.mark.parametrize(("quantile", "images_with_finds"), [(0.5, 2), (0.9999, 1), (1.0, 0)])
def test_pseudo_labels_of_random_images(quantile: float, images_with_finds: int) -> None:
    scene = Scene(warm_steps=0)
    with torch.no_grad():
        logits = scene.critic(scene.clean).logits[..., 1]
    score = float(logits.quantile(quantile)) + 1e-9
    expected = per_image(pseudo_labels(scene.critic, scene.clean, score, 0.45))
    found = plain_step.pseudo_boxes(scene.critic, scene.clean, score, 0.45)
    assert sum(len(boxes) > 0 for boxes in found) == images_with_finds
    for boxes, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(boxes, wanted, rtol=1e-12, atol=1e-12)


def test_review_distance() -> None:
    scene = Scene(warm_steps=0)
    mask = scene.mask.clone()
    for _ in range(2):
        redrawn = redrawn_images(scene)
        expected = review_loss(redrawn, scene.blurred, mask, 20.0)
        got = plain_step.review_loss(redrawn, scene.blurred, mask > 0, 20.0)
        assert expected > 1
        assert got.item() == pytest.approx(expected.item(), rel=1e-12)
        slopes = [torch.autograd.grad(loss, redrawn)[0] for loss in (got, expected)]
        torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-14)
        mask[0] = 0  # and once with an image without a face


def redrawn_images(scene: Scene) -> Tensor:
    """An x̂ further from the blur than the review budget, that gradients are asked for."""
    random = torch.Generator().manual_seed(5)
    noise = torch.randn(scene.blurred.shape, generator=random, dtype=DOUBLE) * 60
    return (scene.blurred + noise * scene.mask).requires_grad_()


def both(scene: Scene, redrawn: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    got = plain_step.plain_objectives(
        redrawn,
        scene.blurred,
        scene.clean,
        scene.mask > 0,
        per_image(scene.labels),
        per_image(scene.pseudo),
        scene.critic,
        scene.adversary,
        scene.optimizer,
        CONFIG,
    )
    return got, scene.objectives(redrawn)


@oracle
@pytest.mark.parametrize("warm_steps", [1, 10])
def test_objectives_and_their_gradients(warm_steps: int) -> None:
    """Of L_cycl, d/dx̂ runs through the Adam step of `higher` here, ours there.

    What has to hold for the two to agree is in `plain_step.loss_after_a_step`: its eps per
    parameter group, counts as Python numbers, and BatchNorm statistics that the pass in train
    mode has moved. A parameter whose second moment is 0 would be no obstacle: `higher` drops
    the gradient of the root there, as ours does.
    """
    scene = Scene(warm_steps)
    redrawn = redrawn_images(scene)
    got, expected = both(scene, redrawn)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].item() == pytest.approx(value.item(), rel=1e-9), name
        slope, wanted = (torch.autograd.grad(loss, redrawn)[0] for loss in (got[name], value))
        assert torch.isfinite(slope).all()
        assert difference(slope, wanted) < 1e-9, name  # 5e-14 seen


@oracle
def test_parameters_without_a_gradient_or_moments() -> None:
    """v == 0: both sides must drop the infinite slope of the root, and at the same places."""
    scene = Scene()
    branch = scene.adversary.ssh3.conv3X3
    branch.get_parameter("1.weight").data.fill_(0.0)
    branch.get_parameter("1.bias").data.fill_(-1.0)  # below the ReLU that follows: no gradient
    for parameter in branch.parameters():
        for moment in ("exp_avg", "exp_avg_sq"):
            scene.optimizer.state[parameter][moment].zero_()
    redrawn = redrawn_images(scene)
    twin = copy.deepcopy(scene.adversary)
    LOSS(twin(redrawn.detach()), scene.labels, (FRAME, FRAME), 0.2).backward()
    assert all(p.grad is not None and not p.grad.any() for p in twin.ssh3.conv3X3.parameters())

    got, expected = both(scene, redrawn)
    assert got["cycl"].item() == pytest.approx(expected["cycl"].item(), rel=1e-9)
    slope, wanted = (torch.autograd.grad(v, redrawn)[0] for v in (got["cycl"], expected["cycl"]))
    assert difference(slope, wanted) < 1e-9


class WholeFrameGenerator(nn.Module):
    """Stands in for the U-Net of 12 million parameters; same input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 3, 1))
        self.to(DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x) + x[:, :3])


def state_of(scene: Scene) -> dict[str, Tensor]:
    state = {f"adversary.{k}": v for k, v in scene.adversary.state_dict().items()}
    for number, moments in scene.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{k}": v for k, v in moments.items()}
    return {name: value.clone() for name, value in state.items()}


def adam(generator: nn.Module) -> torch.optim.Adam:
    recipe = CONFIG["train_generator"]
    return torch.optim.Adam(
        generator.parameters(), lr=recipe["generator_lr"], betas=tuple(recipe["betas"])
    )


@oracle
@pytest.mark.parametrize("clip_norm", [500.0, 0.01])
def test_generator_step(clip_norm: float) -> None:
    """Its values and the weights it leaves are those of a step on models' objectives."""
    weights = {"rev": 1.0, "proc": 0.5, "post": 2.0, "cycl": 3.0}
    options = {"clip_norm": clip_norm, "loss_weights": weights}
    config = {**CONFIG, "train_generator": {**CONFIG["train_generator"], **options}}
    scene = Scene()
    boxes = [b.numpy() for b in per_image(scene.labels)]
    generator = WholeFrameGenerator()
    reference = copy.deepcopy(generator)

    scene.pseudo = pseudo_labels(scene.critic, scene.clean, 0.01, 0.45)
    scene.mask[0, :, 6:30, 30:60] = 1  # the second label
    objectives = scene.objectives(redraw_whole_frame(reference, scene.blurred, boxes))
    total = torch.stack([weights[name] * value for name, value in objectives.items()]).sum()
    parameters = list(reference.parameters())
    gradients = torch.autograd.grad(total, parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    adam(reference).step()

    before = state_of(scene)
    networks = (scene.critic, scene.adversary)
    start = copy.deepcopy(generator.state_dict())
    losses = plain_step.plain_generator_step(
        generator,
        *networks,
        adam(generator),
        scene.optimizer,
        scene.clean,
        scene.blurred,
        boxes,
        config,
    )
    expected = {**objectives, "gradient_norm": norm}
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert losses[name] == pytest.approx(value.item(), rel=1e-9), name
    for name, value in generator.state_dict().items():
        moved = value - start[name]
        assert difference(moved, reference.state_dict()[name] - start[name]) < 1e-9, name
    after = state_of(scene)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for network in networks for p in network.parameters())
    assert scene.adversary.training


def test_adversary_step() -> None:
    scene, twin = Scene(), Scene()
    boxes = [b.numpy() for b in per_image(scene.labels)]
    generator = WholeFrameGenerator()
    with torch.no_grad():
        redrawn = redraw_whole_frame(generator, scene.blurred, boxes)
    loss = LOSS(twin.adversary(redrawn), twin.labels, (FRAME, FRAME), 0.2)
    loss.backward()
    twin.optimizer.step()

    scene.adversary.eval()
    got = plain_step.plain_adversary_step(
        generator, scene.adversary, scene.optimizer, scene.blurred, boxes, CONFIG
    )
    assert got == pytest.approx(loss.item(), rel=1e-12)
    after = state_of(scene)
    for name, value in state_of(twin).items():
        torch.testing.assert_close(after[name], value, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in generator.parameters())
