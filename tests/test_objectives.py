"""The generator's objectives: values, second-order gradients, and what they must leave alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models.generator_training
from models.generator import BlurGenerator
from models.generator_training import GeneratorTraining, plan_passes
from models.objectives import review_loss
from models.retinaface import RetinaFace
from models.training_loop import Schedule, run_training
from models.training_setup import generator_samples
from tests.objective_scene import DOUBLE, FRAME, LOSS, Scene
from utils.config import load_config
from utils.face_dataset import wider_source
from utils.run_dir import RunDirectory


class TinyGenerator(nn.Module):
    """Redraws inside the mask, by two small convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 1))
        self.to(DOUBLE)

    def forward(self, blurred: Tensor, mask: Tensor) -> Tensor:
        return blurred + mask * 60 * self.layers(blurred / 127.5 - 1)


def redrawn_images(scene: Scene) -> Tensor:
    """An x̂ that gradients are asked for."""
    torch.manual_seed(5)
    return TinyGenerator()(scene.blurred, scene.mask).detach().requires_grad_()


def test_an_earlier_eval_graph_survives_the_inner_pass() -> None:
    """Trap 1: what L_post back-propagates must not depend on the train-mode pass after it."""
    scene = Scene()
    redrawn = redrawn_images(scene)
    adversary = copy.deepcopy(scene.adversary).eval()
    alone = LOSS(adversary(redrawn), scene.pseudo, (FRAME, FRAME), 0.2)
    (expected,) = torch.autograd.grad(alone, redrawn)
    together = scene.objectives(redrawn)
    (gradient,) = torch.autograd.grad(together["post"], redrawn)
    assert together["post"].item() == alone.item()
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=0)


def test_values_against_a_step_that_is_really_taken() -> None:
    """L_cycl is the loss, in eval mode, of a copy of f_g that took its optimizer's next step."""
    scene = Scene()
    redrawn = redrawn_images(scene)
    objectives = scene.objectives(redrawn)
    frame = (FRAME, FRAME)
    with torch.no_grad():
        proc = LOSS(scene.critic(redrawn), scene.pseudo, frame)
    assert objectives["proc"].item() == proc.item()
    assert objectives["rev"].item() == review_loss(redrawn, scene.blurred, scene.mask, 20.0).item()

    scene.adversary.train()
    inner = LOSS(scene.adversary(redrawn.detach()), scene.labels, frame, 0.2)
    scene.optimizer.zero_grad()
    inner.backward()
    scene.optimizer.step()
    scene.adversary.eval()
    with torch.no_grad():
        after = LOSS(scene.adversary(scene.clean), scene.pseudo, frame, 0.2)
    assert objectives["cycl"].item() == pytest.approx(after.item(), rel=1e-10)


def flat_state(scene: Scene) -> dict[str, Tensor]:
    state = {f"adversary.{k}": v for k, v in scene.adversary.state_dict().items()}
    state |= {f"critic.{k}": v for k, v in scene.critic.state_dict().items()}
    for number, moments in scene.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{k}": v for k, v in moments.items()}
    return {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize("warm_steps", [0, 3])
def test_networks_and_optimizer_are_left_as_they_were(warm_steps: int) -> None:
    scene = Scene(warm_steps)
    before = flat_state(scene)
    redrawn = redrawn_images(scene)
    objectives = scene.objectives(redrawn)
    torch.autograd.grad(torch.stack(list(objectives.values())).sum(), redrawn)
    after = flat_state(scene)
    assert set(after) == set(before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    assert scene.adversary.training
    assert not scene.critic.training
    networks = [*scene.adversary.parameters(), *scene.critic.parameters()]
    assert all(parameter.grad is None for parameter in networks)


def test_second_order_gradient_against_finite_differences() -> None:
    """d L_cycl / d generator, which flows through f_g's step alone: the clean images are fixed.

    The gradient takes BatchNorm's running statistics for constants, as all training with it
    does, although x̂ moves them; here they are held still, or the differences would see it.
    """
    scene = Scene()
    for module in scene.adversary.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    torch.manual_seed(5)
    generator = TinyGenerator()
    parameters = list(generator.parameters())

    def cycl() -> Tensor:
        return scene.objectives(generator(scene.blurred, scene.mask))["cycl"]

    gradients = torch.autograd.grad(cycl(), parameters)
    assert all(gradient.abs().max() > 1e-6 for gradient in gradients)

    # Short, since the inner gradient jumps where an activation of LeakyReLU changes its sign.
    step = 1e-8
    random = torch.Generator().manual_seed(7)
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=random, dtype=DOUBLE) for p in parameters]
        slope = sum(
            float((gradient * move).sum())
            for gradient, move in zip(gradients, direction, strict=True)
        )
        values = []
        for sign in (1, -1):
            for parameter, move in zip(parameters, direction, strict=True):
                parameter.data += sign * step * move
            values.append(cycl().item())
            for parameter, move in zip(parameters, direction, strict=True):
                parameter.data -= sign * step * move
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)  # 1e-6 seen


def test_review_loss_against_numpy() -> None:
    rng = np.random.default_rng(0)
    blurred = rng.uniform(0, 255, (4, 3, 9, 7))
    redrawn = blurred + rng.normal(0, [[[[60]]], [[[60]]], [[[5]]], [[[60]]]], blurred.shape)
    mask = (rng.random((4, 1, 9, 7)) < 0.4).astype(np.float64)
    mask[1] = 0  # no face: no distance
    distances = []
    for image in range(4):
        values = []
        for channel in range(3):
            for y, x in zip(*mask[image, 0].nonzero(), strict=True):
                error = abs(redrawn[image, channel, y, x] - blurred[image, channel, y, x])
                values.append(error**2 / 2 if error < 1 else error - 0.5)
        distances.append(max(0.0, np.mean(values) - 20.0) if values else 0.0)
    assert distances[0] > 0
    assert distances[2] == 0  # within the budget
    given = torch.tensor(redrawn, requires_grad=True)
    loss = review_loss(given, torch.tensor(blurred), torch.tensor(mask), 20.0)
    assert loss.item() == pytest.approx(np.mean(distances))
    (gradient,) = torch.autograd.grad(loss, given)
    assert torch.isfinite(gradient).all()
    moved = (gradient != 0).any(dim=1).numpy()
    assert (moved[[0, 3]] == (mask[[0, 3], 0] > 0)).all()
    assert not moved[[1, 2]].any()


RECIPE = load_config()["train_generator"]


def test_moments_come_before_the_first_generator_step() -> None:
    for batches, warmup, expected in ((7, 20, 7), (50, 20, 20)):
        recipe = {**RECIPE, "epochs": 3, "moment_warmup": warmup, "adversary_epochs": 2}
        passes = plan_passes(recipe, batches, warm_start=True)
        kinds = [p.kind for p in passes if p.kind != "warm"]
        per_epoch = ["adversary", "adversary", "generator"]
        assert kinds == [*per_epoch[:2], "moments", *per_epoch[2:], *per_epoch, *per_epoch]
        assert next(p.batches for p in passes if p.kind == "moments") == expected
        assert sum(p.batches for p in passes if p.kind == "warm") == RECIPE["warm_start_steps"]
        numbers = [(p.epoch, p.stage) for p in passes]
        assert len(set(numbers)) == len(numbers)  # no two passes draw the same samples
        cold = plan_passes(recipe, batches, warm_start=False)
        assert cold == [p for p in passes if p.kind != "warm"]


class StopHereError(Exception):
    pass


def test_inner_step_never_starts_from_fresh_moments(
    make_tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trap 2, seen from the first generator step of a run."""
    overrides = "batch_size=2 frame=64 epochs=1 adversary_epochs=1 warm_start_steps=1"
    config = load_config(overrides=[f"train_generator.{text}" for text in overrides.split()])
    root = make_tree(tmp_path / "tree")
    source = wider_source(root, "train", blurred=root / "train" / "images_G2_M80")
    samples = generator_samples(source, 0, config)
    cpu = torch.device("cpu")
    training = GeneratorTraining(BlurGenerator(), RetinaFace(), config, cpu, warm_start=True)
    seen: dict[str, Any] = {}

    def first_call(*arguments: Any) -> dict[str, Tensor]:
        seen["adversary"], seen["optimizer"] = arguments[7], arguments[8]
        raise StopHereError

    monkeypatch.setattr(models.generator_training, "generator_objectives", first_call)
    run = RunDirectory(tmp_path / "run", {"config": config}, writes=False)
    schedule = Schedule.of(config["train_generator"])
    with pytest.raises(StopHereError):
        run_training(training, samples, schedule, run, cpu, workers=0)
    trained = [p for p in seen["adversary"].parameters() if p.requires_grad]
    assert len(trained) > 100
    states = [seen["optimizer"].state[parameter] for parameter in trained]
    assert all(state["step"] == 2 for state in states)  # the batches of the moments pass
    assert sum(bool((state["exp_avg_sq"] > 0).any()) for state in states) > 100


def test_only_the_wanted_objectives_are_computed() -> None:
    scene = Scene()
    redrawn = redrawn_images(scene)
    whole = scene.objectives(redrawn)
    assert list(whole) == ["rev", "proc", "post", "cycl"]
    for name in whole:
        assert scene.objectives(redrawn, wanted=[name]) == {name: whole[name].item()}


def test_without_the_second_order_the_value_stays_and_the_gradient_goes() -> None:
    scene = Scene()
    redrawn = redrawn_images(scene)
    whole, cut = scene.objectives(redrawn), scene.objectives(redrawn, second_order=False)
    assert {name: loss.item() for name, loss in cut.items()} == {
        name: loss.item() for name, loss in whole.items()
    }
    (gradient,) = torch.autograd.grad(whole["cycl"], redrawn, retain_graph=True)
    assert gradient.any()
    (gradient,) = torch.autograd.grad(
        cut["cycl"], redrawn, allow_unused=True, retain_graph=True, materialize_grads=True
    )
    assert not gradient.any()
    rest = [losses["proc"] + losses["post"] for losses in (whole, cut)]
    first, second = (torch.autograd.grad(part, redrawn)[0] for part in rest)
    assert torch.equal(first, second)
