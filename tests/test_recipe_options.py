"""What the generator's recipe can leave out or change: ablations, precision, compilation."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.generator import BlurGenerator
from models.generator_training import GeneratorTraining, pick_precision
from models.objectives import OBJECTIVES
from models.retinaface import RetinaFace
from models.training_setup import generator_samples
from models.weights import load_retinaface
from tests.training_runs import Place, assert_same, log_of, overrides
from utils.config import load_config
from utils.face_dataset import labelled_source
from utils.run_dir import RunDirectory
from utils.sampling import Pass

CPU = torch.device("cpu")
SHORT = "warm_start_steps=0 placements=20 pictures_every=0"


@pytest.fixture
def two_photos(place: Place, tmp_path: Path) -> list[object]:
    """Options of a run on two photos: an epoch is a step."""
    folder = place.data / "train"
    lines = (folder / "label.txt").read_text().splitlines()
    third = [number for number, line in enumerate(lines) if line.startswith("#")][2]
    labels = tmp_path / "two.txt"
    labels.write_text("\n".join(lines[:third]) + "\n")
    return ["--photos", folder / "images", "--labels", labels]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The checkpoints of a run, which is spared from writing them."""
    states: list[dict[str, Any]] = []
    monkeypatch.setattr(RunDirectory, "save", lambda self, state, *_: states.append(state))
    return states


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.usefixtures("saved")
def test_an_objective_of_weight_zero_is_left_out(
    place: Place,
    two_photos: list[object],
    run_path: Path,
    main: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Neither logged nor computed."""
    passes, forward = 0, RetinaFace.forward

    def counted(self: RetinaFace, *arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        return forward(self, *arguments)

    monkeypatch.setattr(RetinaFace, "forward", counted)
    numbers = f"{SHORT} adversary_epochs=0 loss_weights.{name}=0"
    options = [*two_photos, *overrides("train_generator", numbers)]
    assert main(*place.generator(run_path, *options)) == 0
    moments, step = log_of(run_path)
    assert set(moments) == {"step", "kind", "epoch", "adversary"}
    left = [other for other in OBJECTIVES if other != name]
    losses = {*left, "loss", "gradient_norm", "adversary"}
    assert set(step) == {"step", "kind", "epoch", *losses}
    assert all(math.isfinite(step[key]) for key in losses)
    assert step["loss"] == pytest.approx(sum(step[key] for key in left), rel=1e-5)
    assert step["gradient_norm"] > 0
    # Two adversary steps and pseudo-labels are needed anyway.
    assert passes == 3 + sum({"rev": 0, "proc": 1, "post": 1, "cycl": 2}[key] for key in left)


def test_an_adversary_that_does_not_train(
    place: Place,
    two_photos: list[object],
    run_path: Path,
    main: Callable[..., int],
    saved: list[dict[str, Any]],
) -> None:
    """It stays the critic, to the bit; the differentiable step has its moments all the same."""
    numbers = f"{SHORT} epochs=2 adversary_epochs=2 train_adversary=false"
    options = [*two_photos, *overrides("train_generator", numbers)]
    assert main(*place.generator(run_path, *options)) == 0
    log = log_of(run_path)
    assert [entry["kind"] for entry in log] == ["moments", "generator", "generator"]
    assert all(entry[name] > 0 for entry in log[1:] for name in ("proc", "post", "cycl"))
    state = saved[-1]
    assert_same(state["adversary"], state["critic"])
    moments = state["phase_b_optimizer"]["state"]
    assert {float(values["step"]) for values in moments.values()} == {3.0}
    assert any(values["exp_avg"].any() for values in moments.values())
    assert state["phase_a_optimizer"]["state"] == {}
    assert state["phase_b_optimizer"]["param_groups"][0]["lr"] == pytest.approx(5e-4 * 0.925)


class Steps:
    """The adversary's step for moments and one generator step, from the same start each time."""

    def __init__(self, place: Place, numbers: str) -> None:
        config = load_config(
            overrides=[f"train_generator.{text}" for text in (numbers + " frame=64").split()]
        )
        folder = place.data / "train"
        source = labelled_source(folder / "images", folder / "label.txt")
        samples = generator_samples(source, 0, config)
        batch = samples.collate([samples[(0, 0, index)] for index in (1, 2)])
        assert batch is not None
        torch.manual_seed(0)
        critic = load_retinaface(place.critic)
        self.training = GeneratorTraining(BlurGenerator(), critic, config, CPU, warm_start=False)
        self.training.step(Pass("moments", 0, 0, 1), batch)
        losses = self.training.step(Pass("generator", 0, 0, 1), batch)
        self.losses = {name: loss.item() for name, loss in losses.items()}

    def gradients(self) -> Tensor:
        """The generator's, out of the first step's moments."""
        moments = self.training.generator_optimizer.state.values()
        return torch.cat([values["exp_avg"].flatten() for values in moments]) / 0.5


@pytest.fixture(scope="module")
def full(place: Place) -> Steps:
    return Steps(place, "precision=float32")


def test_without_the_second_order_cycl_is_measured_only(place: Place, full: Steps) -> None:
    first_order = Steps(place, "precision=float32 second_order=false")
    without = Steps(place, "precision=float32 loss_weights.cycl=0")
    for name in (*OBJECTIVES, "loss"):
        assert first_order.losses[name] == full.losses[name]
    assert "cycl" not in without.losses
    assert torch.equal(first_order.gradients(), without.gradients())
    difference = (first_order.gradients() - full.gradients()).norm()
    assert difference > 0.01 * full.gradients().norm()


def test_bfloat16(place: Place, full: Steps) -> None:
    """Of the first-order passes; what trains, and the step of second order, is float32."""
    half = Steps(place, "precision=bfloat16")
    for name in OBJECTIVES:
        assert half.losses[name] == pytest.approx(full.losses[name], rel=0.05, abs=0.05)
    assert half.losses["proc"] != full.losses["proc"]
    assert torch.isfinite(half.gradients()).all()
    for network in (half.training.generator, half.training.adversary, half.training.critic):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        assert all(torch.isfinite(parameter).all() for parameter in network.parameters())
    assert pick_precision("auto", CPU) == torch.float32


class Recorder(nn.Module):
    """What the generator was compiled to, which counts its calls."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.network(x)


def test_the_compiled_generator_is_the_one_that_trains(
    place: Place, full: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without compiling, which takes minutes: only that steps go through what compile returns."""
    made: list[Recorder] = []

    def compile_(network: nn.Module, dynamic: bool) -> Recorder:
        assert dynamic  # the number of tiles differs from batch to batch
        made.append(Recorder(network))
        return made[-1]

    monkeypatch.setattr(torch, "compile", compile_)
    Steps(place, "precision=float32")
    assert made == []
    compiled = Steps(place, "precision=float32 compile=true")
    (recorder,) = made  # nothing but the generator: the second order does not go through
    assert recorder.network is compiled.training.generator
    assert recorder.calls > 0
    assert compiled.losses == full.losses
    assert "generator" in compiled.training.state()
    assert not any("network" in name for name in compiled.training.state()["generator"])
