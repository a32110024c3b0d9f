"""train.py from its command line, on pictures drawn for the purpose."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.generator import BlurGenerator
from models.retinaface import RetinaFace
from models.weights import load_weights, save_weights
from tests.training_runs import Place, log_of, overrides, started
from utils.run_dir import RunDirectory


def tensors_of(content: Any, name: str = "") -> dict[str, Any]:
    """The values of a checkpoint by their place in it."""
    if isinstance(content, dict):
        pairs = content.items()
    elif isinstance(content, list | tuple):
        pairs = enumerate(content)  # type: ignore[assignment]
    else:
        return {name: content}
    return {k: v for key, value in pairs for k, v in tensors_of(value, f"{name}/{key}").items()}


def assert_same_checkpoint(first: Path, second: Path) -> None:
    a, b = (tensors_of(RunDirectory.open(path).load()) for path in (first, second))
    assert set(a) == set(b)
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


@pytest.fixture(scope="module")
def finished(place: Place) -> Iterator[Path]:
    """A generator's run from start to end, as a user starts it."""
    run = place.folder / "finished"
    process = started(*place.generator(run))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Traceback" not in output + errors
    yield run
    shutil.rmtree(run)


def test_generator_runs_through_all_passes(finished: Path) -> None:
    log = log_of(finished)
    assert [entry["step"] for entry in log] == list(range(1, len(log) + 1))
    passes = [("warm", 0, 2), ("adversary", 0, 4), ("moments", 0, 1), ("generator", 0, 4)]
    expected = [(kind, epoch) for kind, epoch, batches in passes for _ in range(batches)]
    assert [(entry["kind"], entry["epoch"]) for entry in log] == expected
    losses = {"rev", "proc", "post", "cycl", "adversary", "gradient_norm"}
    wanted = {"warm": {"distance"}, "generator": losses}
    for entry in log:
        names = set(entry) - {"step", "kind", "epoch"}
        assert names == wanted.get(entry["kind"], {"adversary"})
        assert all(math.isfinite(entry[name]) for name in names)
    steps = [entry for entry in log if entry["kind"] == "generator"]
    for name in losses - {"rev"}:  # the review distance may lie within its budget
        assert all(entry[name] > 0 for entry in steps), name
    assert {file.name for file in finished.iterdir()} == {
        "config.yaml",
        "stats.jsonl",
        "checkpoint.pt",
    }


def test_a_killed_run_goes_on_bit_for_bit(
    place: Place, finished: Path, run_path: Path, main: Callable[..., int]
) -> None:
    process = started(*place.generator(run_path))
    log = run_path / "stats.jsonl"
    deadline = time.monotonic() + 240
    # Killed in the middle of the generator's pass, a step after a checkpoint in that pass.
    while not (log.exists() and len(log.read_bytes().splitlines()) >= 9):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode != 0
    state = RunDirectory.open(run_path).load()
    assert state is not None
    assert (state["step"], state["batch"]) == (8, 1)
    assert main("--resume", run_path, "--threads", 1) == 0
    assert log_of(run_path) == log_of(finished)
    assert_same_checkpoint(run_path, finished)


def test_export(finished: Path, tmp_path: Path, main: Callable[..., int]) -> None:
    assert main("--export", finished, "--to", tmp_path / "mine.safetensors") == 0
    generator = BlurGenerator()
    load_weights(generator, tmp_path / "mine.safetensors")
    state = RunDirectory.open(finished).load()
    assert state is not None
    for name, value in generator.state_dict().items():
        assert torch.equal(value, state["generator"][name].half().float())
    assert (tmp_path / "mine.safetensors").stat().st_size < 26_000_000  # float16


def test_detector_trains_stops_and_goes_on(
    place: Place,
    run_path: Path,
    main: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = run_path / "whole"
    assert main(*place.detector(whole)) == 0
    log = log_of(whole)
    assert [(entry["step"], entry["epoch"]) for entry in log] == [
        (step + 1, step // 4) for step in range(12)
    ]
    assert all(entry["loss"] > 0 for entry in log)
    assert max(entry["lr"] for entry in log) > 10 * log[-1]["lr"]

    stopped, log_line = run_path / "stopped", RunDirectory.log

    def interrupted(self: RunDirectory, **values: Any) -> None:
        log_line(self, **values)
        if values["step"] == 7:  # in the second epoch, one step after a checkpoint
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "log", interrupted)
    capsys.readouterr()
    assert main(*place.detector(stopped)) == 130
    assert "--resume" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(RunDirectory, "log", log_line)
    assert main("--resume", stopped, "--threads", 1) == 0
    assert log_of(stopped) == log
    assert_same_checkpoint(stopped, whole)
    assert main("--resume", stopped, "--threads", 1) == 0  # nothing is left to do
    assert log_of(stopped) == log

    weights = run_path / "detector.safetensors"
    assert main("--export", stopped, "--to", weights) == 0
    detector = RetinaFace()
    load_weights(detector, weights)
    state = RunDirectory.open(stopped).load()
    assert state is not None
    for name, value in detector.state_dict().items():
        assert torch.equal(value, state["detector"][name])


def test_detector_learns_from_another_variant(
    place: Place, run_path: Path, main: Callable[..., int]
) -> None:
    short = overrides("train_detector", "epochs=1")
    assert main(*place.detector(run_path / "clean", *short)) == 0
    blurred = [*short, "--images", "images_G2_M80"]
    assert main(*place.detector(run_path / "blurred", *blurred)) == 0
    other = [*short, "--seed", 1]
    assert main(*place.detector(run_path / "seed", *other)) == 0
    losses = [[e["loss"] for e in log_of(run_path / n)] for n in ("clean", "blurred", "seed")]
    assert losses[0] != losses[1]
    assert losses[0] != losses[2]


def test_generator_learns_from_any_folder(
    place: Place, run_path: Path, main: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--photos` with `--labels`; `--init` in place of the warm start; rates of the next epoch."""
    states: list[dict[str, Any]] = []
    monkeypatch.setattr(RunDirectory, "save", lambda self, state: states.append(state))
    folder = place.data / "train"
    start = place.folder / "start.safetensors"
    save_weights(BlurGenerator(), start)
    more = ["--photos", folder / "images", "--labels", folder / "label.txt", "--init", start]
    more += ["--data", "nowhere", *overrides("train_generator", "epochs=2 batch_size=4")]
    assert main(*place.generator(run_path, *more)) == 0
    kinds = [(entry["kind"], entry["epoch"]) for entry in log_of(run_path)]
    first = [("adversary", 0)] * 2 + [("moments", 0)] + [("generator", 0)] * 2
    assert kinds == first + [("adversary", 1)] * 2 + [("generator", 1)] * 2
    groups = {
        name: part["param_groups"][0] for name, part in states[-1].items() if "optimizer" in name
    }
    assert {name: group["lr"] for name, group in groups.items()} == {
        "warm_optimizer": 1e-3,
        "generator_optimizer": pytest.approx(2e-4 * 0.925),
        "phase_a_optimizer": 5e-4,  # never decayed
        "phase_b_optimizer": pytest.approx(5e-4 * 0.925),
    }
    for name in groups.keys() - {"warm_optimizer"}:
        assert tuple(groups[name]["betas"]) == (0.5, 0.999)


def test_validation_prints_one_figure(
    place: Place,
    make_tree: Callable[..., Path],
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_tree(place.data, photos=3, split="val", blurred=False)
    assert main("--validate", place.critic, "--data", place.data) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "AP 0." in printed
    assert "3 photos" in printed
