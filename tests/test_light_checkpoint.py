"""Light checkpoints: one small file that carries a run to another machine."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from models.generator import BlurGenerator
from models.light_checkpoint import read_light
from models.training_loop import rewarm
from models.training_setup import Setup, build_training
from models.weights import save_weights
from tests.training_runs import Place, assert_same, files, log_of, newest, overrides
from utils.run_dir import RunDirectory

CPU = torch.device("cpu")


def moved(place: Place, folder: Path) -> Place:
    """The same photos and critic at a place of their own, that a test may move on."""
    shutil.copytree(place.data, folder / "data")
    shutil.copy(place.critic, folder / "critic.safetensors")
    return Place(folder, folder / "data", folder / "critic.safetensors")


def rewarmed(light: Path) -> tuple[Setup, Any]:
    """The training of a light checkpoint before its first step, and its state as loaded."""
    settings, state = read_light(light)
    setup = build_training(settings, CPU, state)
    setup.training.load(state)
    before = copy.deepcopy(setup.training.state())
    schedule = setup.schedule
    batches = len(setup.samples) // schedule.batch_size
    rewarm(setup.training, setup.samples, schedule.batch_size, batches, 0, CPU, workers=0)
    return setup, before


def counts(optimizer: torch.optim.Optimizer) -> set[float]:
    """How many steps the moments of the parameters are of; none at all is no entry."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        moments = optimizer.state.get(parameter, {})
        assert all(torch.isfinite(value).all() for value in moments.values())
    return {float(optimizer.state[p]["step"]) if p in optimizer.state else 0 for p in parameters}


def test_a_generators_run_moves_to_another_place(
    place: Place,
    finished: Path,
    tmp_path: Path,
    run_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = tmp_path / "old"  # a run of another machine: neither its photos nor its critic are here
    (old / "run").mkdir(parents=True)
    shutil.copy(finished / "checkpoint-00000008.pt", old / "run")
    settings = (finished / "config.yaml").read_text(encoding="utf-8")
    assert settings.count(str(place.folder)) == 2
    text = settings.replace(str(place.folder), str(old))
    (old / "run" / "config.yaml").write_text(text, encoding="utf-8")
    state = newest(old / "run")

    light = tmp_path / "carried" / "first.safetensors"
    assert main("--light", old / "run", "--to", light) == 0
    assert 26e6 < light.stat().st_size < 30e6
    shutil.rmtree(old)
    again = ["--resume", light, "--run", run_path, "--threads", 1]
    assert main(*again) == 1
    assert str(old) in capsys.readouterr().err
    assert not run_path.exists()

    assert main(*again, "--data", place.data) == 0
    entries, log = log_of(run_path), log_of(finished)
    assert [(entry["step"], entry["kind"]) for entry in entries] == [
        (step, "generator") for step in (9, 10, 11)
    ]
    for name in ("rev", "proc", "post", "cycl"):  # of the weights as they came, in float16
        assert entries[0][name] == pytest.approx(log[8][name], rel=0.02, abs=0.02), name
    after = newest(run_path)
    assert after["step"] == 11
    assert_same(after["critic"], state["critic"])
    # One step of `moment_warmup` before those of the run; phase (a) is over.
    for optimizer, steps in (("phase_a", 1), ("phase_b", 4), ("generator", 4)):
        moments = after[f"{optimizer}_optimizer"]["state"].values()
        assert {float(values["step"]) for values in moments} == {steps}
    new = RunDirectory.open(run_path).settings
    assert new["data"] == str(place.data)
    assert new["config"] == RunDirectory.open(finished).settings["config"]


def test_filling_a_generators_moments_changes_nothing_else(
    finished: Path, tmp_path: Path, main: Callable[..., int]
) -> None:
    light = tmp_path / "light.safetensors"
    assert main("--light", finished, "--to", light) == 0
    setup, before = rewarmed(light)
    training: Any = setup.training
    networks = ("generator", "adversary", "critic")
    full = newest(finished)
    for name in networks:
        assert_same(getattr(training, name).state_dict(), before[name])
        for key, value in full[name].items():
            exact = name == "critic" or "running" in key or "tracked" in key
            assert torch.equal(before[name][key], value if exact else value.half().float()), key
        assert all(p.grad is None for p in getattr(training, name).parameters())
    # What has no gradient, the landmark heads, is in no optimizer.
    steps = {name: counts(part) for name, part in vars(training).items() if "optimizer" in name}
    assert steps == {
        "warm_optimizer": {0.0},
        "generator_optimizer": {1.0},  # moment_warmup
        "phase_a_optimizer": {1.0},
        "phase_b_optimizer": {1.0},
    }
    options = [part.param_groups[0] for name, part in vars(training).items() if "optimizer" in name]
    assert [group["lr"] for group in options] == [1e-3, 2e-4, 5e-4, 5e-4]
    assert training.adversary.training
    assert not training.critic.training


def test_a_detectors_run_moves_to_another_place(
    place: Place,
    tmp_path: Path,
    run_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    old = moved(place, tmp_path / "old")
    more = overrides("train_detector", "keep_checkpoints=9")
    assert main(*old.detector(run_path, *more)) == 0
    log = log_of(run_path)
    for step in (8, 10, 12):
        (run_path / f"checkpoint-{step:08d}.pt").unlink()
    light = tmp_path / "light.safetensors"
    assert main("--light", run_path, "--to", light) == 0
    assert light.stat().st_size < 2 * 433_343 + 100_000
    shutil.rmtree(run_path)
    new = tmp_path / "new"
    shutil.move(old.data, new)

    again = ["--resume", light, "--run", run_path, "--data", new, "--threads", 1]
    assert main(*again, "--dry-run") == 0
    assert "detector: 6 steps of" in capsys.readouterr().out
    assert not run_path.exists()
    assert main(*again) == 0
    entries = log_of(run_path)
    assert [entry["step"] for entry in entries] == [7, 8, 9, 10, 11, 12]
    assert [entry["lr"] for entry in entries] == [entry["lr"] for entry in log[6:]]
    assert len({entry["lr"] for entry in entries}) == 6
    assert entries[0]["loss"] == pytest.approx(log[6]["loss"], rel=0.01)

    # The new run is one like any other, also before the first checkpoint of its own.
    after = newest(run_path)
    for step in (8, 10, 12):
        (run_path / f"checkpoint-{step:08d}.pt").unlink()
    assert newest(run_path)["step"] == 6
    assert main("--resume", run_path, "--threads", 1) == 0
    assert log_of(run_path) == entries
    assert_same(newest(run_path), after)

    shutil.move(new, old.data)
    setup, before = rewarmed(light)
    training: Any = setup.training
    assert_same(training.detector.state_dict(), before["detector"])
    assert_same(training.scheduler.state_dict(), before["scheduler"])
    assert counts(training.optimizer) == {4.0}  # REWARM_STEPS, but no more than an epoch
    rate = training.optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(log[6]["lr"], rel=1e-6)
    assert training.detector.training


def page(path: Path) -> None:
    path.write_text("<html>no such page</html>")


def generator_weights(path: Path) -> None:
    save_weights(BlurGenerator(), path, torch.float16)


def half_of_a_file(path: Path) -> None:
    generator_weights(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("make", [page, generator_weights, half_of_a_file, Path.touch, Path.mkdir])
def test_other_files_are_refused(
    run_path: Path,
    tmp_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    make: Callable[[Path], None],
) -> None:
    file = tmp_path / "file.safetensors"
    make(file)
    assert main("--resume", file, "--run", run_path) == 1
    errors = capsys.readouterr().err
    assert errors == f"train.py: {file}: not a light checkpoint of train.py --light\n"
    assert not run_path.exists()


def test_what_cannot_be_written_or_read(
    place: Place,
    run_path: Path,
    tmp_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    RunDirectory.create(run_path, {"model": "generator", "config": {}})
    cases = [
        (["--light", run_path, "--to", tmp_path / "l.safetensors"], "no checkpoint yet"),
        (["--light", tmp_path / "no", "--to", tmp_path / "l.safetensors"], "no run directory"),
        (["--resume", tmp_path / "no.safetensors"], "no.safetensors: no such file"),
    ]
    for arguments, words in cases:
        assert main(*arguments) == 1
        errors = capsys.readouterr().err
        assert errors.startswith("train.py: ")
        assert words in errors
        assert errors.count("\n") == 1
    shutil.rmtree(run_path)

    assert main(*place.detector(run_path, *overrides("train_detector", "epochs=1"))) == 0
    light = tmp_path / "light.safetensors"
    assert main("--light", run_path, "--to", light) == 0
    before = files(run_path)
    capsys.readouterr()
    assert main("--light", run_path, "--to", tmp_path / "light.pt") == 1
    assert ".safetensors files only" in capsys.readouterr().err
    assert main("--resume", light, "--run", run_path) == 1  # a run lies there already
    assert "not empty" in capsys.readouterr().err
    assert files(run_path) == before
    with pytest.raises(SystemExit):
        main("--resume", light, "--run", tmp_path / "other", "--seed", 3)
    assert "leave out --seed" in capsys.readouterr().err


def test_a_file_says_where_it_comes_from(
    finished: Path, tmp_path: Path, main: Callable[..., int]
) -> None:
    light = tmp_path / "light.safetensors"
    assert main("--light", finished, "--to", light) == 0
    settings, state = read_light(light)
    whole = newest(finished)
    assert settings == RunDirectory.open(finished).settings
    for name in ("pass", "batch", "step", "photos", "made_by"):
        assert state[name] == whole[name]
    with safe_open(light, framework="pt") as file:  # networks only, no moments
        assert {name.partition(".")[0] for name in file.keys()} == {  # noqa: SIM118
            "generator",
            "adversary",
            "critic",
        }
