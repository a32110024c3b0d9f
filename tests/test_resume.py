"""A run that was killed goes on as if it had not been, bit for bit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from models.generator_training import GeneratorTraining
from tests.children import call_train, child
from tests.training_runs import Place, assert_same_checkpoint, log_of, newest, started
from utils.run_dir import RunDirectory


def stop_in_step(connection: Connection, step: int, arguments: list[object]) -> None:
    """Run train.py, say when it begins the step, and take no other after it."""
    taken, take = 0, GeneratorTraining.step

    def counted(self: GeneratorTraining, *args: Any) -> dict[str, torch.Tensor]:
        nonlocal taken
        taken += 1
        if taken == step:
            connection.send("here")
        losses = take(self, *args)
        if taken == step:
            time.sleep(60)
        return losses

    with mock.patch.object(GeneratorTraining, "step", counted):
        call_train(*arguments)


def stop_in_checkpoint(connection: Connection, step: int, arguments: list[object]) -> None:
    """Run train.py, and say when half of the checkpoint of the step is on the disk."""
    replace = os.replace

    def halved(source: Path, target: Path) -> None:
        if target.name == f"checkpoint-{step:08d}.pt":
            os.truncate(source, source.stat().st_size // 2)
            connection.send("here")
            time.sleep(60)
        replace(source, target)

    with mock.patch.object(os, "replace", halved):
        call_train(*arguments)


MOMENTS = [
    # what runs, at which step, seconds until the kill, the checkpoint that is left
    pytest.param(stop_in_step, 2, 0.05, None, id="warm start"),
    pytest.param(stop_in_step, 5, 0.0, 2, id="adversary"),
    pytest.param(stop_in_checkpoint, 11, 0.0, 8, id="checkpoint"),  # 8: after a generator step
]


@pytest.mark.parametrize(("function", "step", "delay", "left"), MOMENTS)
def test_a_killed_run_goes_on_bit_for_bit(
    place: Place,
    finished: Path,
    run_path: Path,
    main: Callable[..., int],
    function: Any,
    step: int,
    delay: float,
    left: int | None,
) -> None:
    process, connection = child(function, step, place.generator(run_path))
    assert connection.poll(300)
    assert connection.recv() == "here"
    time.sleep(delay)
    process.kill()
    process.join()
    assert process.exitcode != 0
    state = RunDirectory.open(run_path).load()
    assert (state and state["step"]) == left
    partial = run_path / ".checkpoint.part"
    assert partial.exists() == (function is stop_in_checkpoint)

    # The samples do not depend on the process that draws them.
    workers = 1 if function is stop_in_checkpoint else 0
    assert main("--resume", run_path, "--threads", 1, "--workers", workers) == 0
    assert log_of(run_path) == log_of(finished)
    assert_same_checkpoint(run_path, finished)
    assert not partial.exists()


def test_killed_from_outside(
    place: Place, finished: Path, run_path: Path, main: Callable[..., int]
) -> None:
    """As `kill -9` does it to a run that a user started."""
    process = started(*place.generator(run_path))
    log = run_path / "stats.jsonl"
    deadline = time.monotonic() + 240
    # In the middle of the generator's pass; a step is logged while the next one runs.
    while not (log.exists() and len(log.read_bytes().splitlines()) >= 8):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode != 0
    state = newest(run_path)
    assert state["step"] in (7, 8)  # 7: killed while that of step 8 was being written
    assert main("--resume", run_path, "--threads", 1) == 0
    assert log_of(run_path) == log_of(finished)
    assert_same_checkpoint(run_path, finished)
