"""The loop by itself, with a training that only remembers what it was asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import utils.processes
from models.training_loop import Schedule, run_training
from tests.batches import generator_samples
from tests.conftest import TreeMaker
from utils.face_dataset import wider_source
from utils.processes import ProcessError, require_same
from utils.run_dir import RunDirectory
from utils.sampling import Pass


class Recorder:
    """A training of three epochs; notes kind, epoch and stillness of each step."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, bool]] = []

    def plan(self, batches: int) -> list[Pass]:
        return [Pass("work", epoch, 0, batches) for epoch in range(3)]

    def rewarm_plan(self, batches: int, epoch: int) -> list[Pass]:
        return [Pass("refill", epoch, 1, 1)]

    def step(self, current: Pass, batch: Any, still: bool = False) -> dict[str, Tensor]:
        self.steps.append((current.kind, current.epoch, still))
        return {"loss": torch.tensor(1.0)}

    def pictures(self, batch: Any) -> Tensor:
        raise NotImplementedError

    def state(self) -> dict[str, Any]:
        return {}

    def load(self, state: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize(("position", "epoch"), [(1, 1), (3, 2)])
def test_moments_are_refilled_as_the_epoch_that_goes_on_needs_them(
    make_tree: TreeMaker, tmp_path: Path, position: int, epoch: int
) -> None:
    """The inner step has the learning rate of its epoch; 3 is the place after the last pass."""
    source = wider_source(make_tree(tmp_path / "tree", photos=4), "train")
    state = {"light": True, "pass": position, "batch": 0, "step": 2 * position}
    run = RunDirectory.create(tmp_path / "run", {}, state=state)
    recorder = Recorder()
    schedule = Schedule(2, checkpoint_every=100, keep_checkpoints=1, pictures_every=0)
    cpu = torch.device("cpu")
    run_training(recorder, generator_samples(source), schedule, run, cpu, workers=0)
    work = [("work", later, False) for later in range(position, 3) for _ in range(2)]
    assert recorder.steps == [("refill", epoch, True), *work]


@pytest.mark.parametrize("other", [6, 8])
def test_processes_that_start_from_different_steps_stop(
    monkeypatch: pytest.MonkeyPatch, other: int
) -> None:
    def with_another(values: Tensor, _operation: Any) -> None:
        values.copy_(torch.minimum(values, torch.tensor([other, -other])))

    require_same(7, "alone, it agrees with itself")
    monkeypatch.setattr(utils.processes, "process_count", lambda: 2)
    monkeypatch.setattr(utils.processes.dist, "all_reduce", with_another)
    require_same(other, "both the same")
    with pytest.raises(ProcessError, match="share the run directory"):
        require_same(7, "they must share the run directory")
