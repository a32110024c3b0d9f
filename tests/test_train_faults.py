"""train.py on bad input: one clear line, a non-zero exit code, and nothing left behind."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train
from models.detector_training import DetectorTraining
from models.generator_training import GeneratorTraining
from tests.training_runs import Place, files, log_of, newest, overrides, started
from utils.run_dir import RunDirectory

Change = Callable[[Place, Path], list[object]]


def missing_data(place: Place, run: Path) -> list[object]:
    return [*place.generator(run), "--data", run.parent / "nowhere"]


def missing_photo(place: Place, run: Path) -> list[object]:
    data = shutil.copytree(place.data, run.parent / "data")
    (data / "train" / "images" / "event" / "3.jpg").unlink()
    return [*place.detector(run), "--data", data]


def missing_copies(place: Place, run: Path) -> list[object]:
    data = shutil.copytree(place.data, run.parent / "data")
    shutil.rmtree(data / "train" / "images_G2_M80")
    return [*place.generator(run), "--data", data]


def malformed_labels(place: Place, run: Path) -> list[object]:
    data = shutil.copytree(place.data, run.parent / "data")
    (data / "train" / "label.txt").write_text("# event/0.jpg\n1 2 3\n")
    return [*place.generator(run), "--data", data]


def no_weights(place: Place, run: Path) -> list[object]:
    return [*place.generator(run), "--critic", run.parent / "nowhere.safetensors"]


def other_weights(place: Place, run: Path) -> list[object]:
    return [*place.generator(run), "--init", place.critic]


def no_gradient(weights: str, *more: str) -> Change:
    options = [f"train_generator.{text}" for text in (f"loss_weights={weights}", *more)]
    return lambda p, r: [*p.generator(r), *(word for o in options for word in ("--set", o))]


FAULTS: list[tuple[Change, str]] = [
    (missing_data, "prepare_widerface.py"),
    (missing_photo, "1 of 8 photos"),
    (missing_copies, "gaussblur.py"),
    (malformed_labels, "label.txt:2: "),
    (no_weights, "no such weight file"),
    (other_weights, "not weights of BlurGenerator"),
    (lambda p, r: [*p.generator(r), "--set", "train_generator.epoch=1"], "it has epochs"),
    (lambda p, r: [*p.generator(r), "--set", "critic.backbone=vgg"], "backbone"),
    (lambda p, r: [*p.generator(r), "--set", "train_generator.precision=half"], "precision"),
    (no_gradient("{rev: 0, proc: 0, post: 0, cycl: 0}"), "no gradient"),
    (no_gradient("{rev: 0, proc: 0, post: 0}", "second_order=false"), "no gradient"),
    (lambda p, r: [*p.generator(r), "--config", r.parent / "no.yaml"], "no such configuration"),
    (lambda p, r: [*p.generator(r), "--photos", p.data, "--labels", p.data], "data"),
    (lambda p, r: ["--resume", r], "no run directory"),
    (lambda p, r: ["--export", r, "--to", r.parent / "w.safetensors"], "no run directory"),
    (lambda p, r: ["--validate", p.critic, "--data", r], "prepare_widerface.py"),
    (lambda p, r: ["--validate", r, "--data", p.data], "no such weight file"),
]


@pytest.mark.parametrize(
    ("change", "words"), FAULTS, ids=[words.replace(" ", "-") for _, words in FAULTS]
)
def test_faults_take_one_line_and_leave_no_run(
    place: Place,
    run_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    change: Change,
    words: str,
) -> None:
    assert main(*change(place, run_path)) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("train.py: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err
    assert captured.out == ""
    assert not run_path.exists()


def test_a_fault_seen_from_outside(place: Place, run_path: Path) -> None:
    process = started(*missing_data(place, run_path))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert (output, errors.count("\n")) == ("", 1)
    assert errors.startswith("train.py: no labels for 'train'")


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on stderr after the progress bar."""
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    return errors.splitlines()[-1]


def test_a_directory_in_use_stays_as_it_is(
    place: Place, run_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run_path.mkdir()
    (run_path / "notes.txt").write_text("mine")
    assert main(*place.detector(run_path)) == 1
    assert "not empty" in last_line(capsys)
    assert [file.name for file in run_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("model", ["generator", "detector"])
def test_too_few_photos_for_a_batch(
    place: Place,
    run_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    model: str,
) -> None:
    arguments = place.generator(run_path) if model == "generator" else place.detector(run_path)
    assert main(*arguments, *overrides(f"train_{model}", "batch_size=9")) == 1
    assert f"8 photos make no batch of 9; lower train_{model}.batch_size" in last_line(capsys)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_photo_is_named(
    place: Place,
    run_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    """Also where a loader process comes upon it."""
    data = shutil.copytree(place.data, run_path.parent / "data")
    for photo in (data / "train" / "images" / "event").iterdir():
        photo.write_bytes(photo.read_bytes()[:600])
    assert main(*place.detector(run_path), "--data", data, "--workers", workers) == 1
    line = last_line(capsys)
    assert line.startswith("train.py: ")
    assert ".jpg: " in line


@pytest.mark.parametrize("every", [3, 5])
def test_a_loss_that_is_no_number_ends_the_run(
    place: Place,
    run_path: Path,
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    every: int,
) -> None:
    """Also where the step's own checkpoint comes before the next step."""
    numbers = f"checkpoint_every={every} keep_checkpoints=9"
    assert main(*place.detector(run_path, *overrides("train_detector", numbers))) == 0
    for file in run_path.glob("*.pt"):
        if file.name != "checkpoint-00000004.pt":
            file.unlink()
    state = newest(run_path)
    assert (state["step"], state["pass"], state["batch"]) == (4, 1, 0)
    for name, value in state["detector"].items():
        if name.startswith("ClassHead"):
            value.fill_(math.nan)
    RunDirectory.open(run_path).save(state, keep=3)
    before = (run_path / "checkpoint-00000004.pt").read_bytes()
    capsys.readouterr()
    assert main("--resume", run_path) == 1
    line = last_line(capsys)
    assert line.startswith("train.py: step 5 (detector): losses {'loss': nan, ")
    # Read while step 6 runs, perhaps; it is step 5's photos that are named.
    order = np.random.default_rng([0, 0, 1]).permutation(8)[:2]
    assert f"; photos: {', '.join(f'event/{number}.jpg' for number in order)}; " in line
    assert [file.name for file in run_path.glob("*.pt")] == ["checkpoint-00000004.pt"]
    assert (run_path / "checkpoint-00000004.pt").read_bytes() == before
    assert [entry["step"] for entry in log_of(run_path)] == [1, 2, 3, 4]


@pytest.mark.parametrize("way", ["generator", "detector", "resumed", "light"])
def test_too_little_gpu_memory(
    place: Place,
    run_path: Path,
    main: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    way: str,
) -> None:
    """PyTorch's own error ends in one line, with the numbers of the run's own model to lower."""
    resume = [*place.detector(run_path), *overrides("train_detector", "epochs=1")]
    if way in ("resumed", "light"):
        assert main(*resume) == 0
        (run_path / "checkpoint-00000004.pt").unlink()
        resume = ["--resume", run_path]
    if way == "light":
        assert main("--light", run_path, "--to", run_path.parent / "light.safetensors") == 0
        resume = ["--resume", run_path.parent / "light.safetensors", "--run", run_path / "more"]

    def full(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB.")

    model = "generator" if way == "generator" else "detector"
    monkeypatch.setattr(DetectorTraining, "step", full)
    monkeypatch.setattr(GeneratorTraining, "step", full)
    capsys.readouterr()
    assert main(*(place.generator(run_path) if way == "generator" else resume)) == 1
    line = last_line(capsys)
    assert line.startswith("train.py: the GPU's memory does not suffice; ")
    assert f"lower train_{model}.batch_size or train_{model}.frame " in line


def test_too_little_gpu_memory_to_validate(
    place: Place,
    main: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(train, "detector_ap", full)
    monkeypatch.setattr(train, "validation_source", lambda _: None)
    assert main("--validate", place.critic) == 1
    assert "use --device cpu" in last_line(capsys)


def test_a_run_on_other_photos_is_not_continued(
    place: Place,
    run_path: Path,
    make_tree: Callable[..., Path],
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its place in an epoch, and the learning rate's schedule, hold for as many photos."""
    data = shutil.copytree(place.data, run_path.parent / "data")
    assert main(*place.detector(run_path, "--data", data)) == 0
    make_tree(data, photos=9)
    before = files(run_path)
    assert main("--resume", run_path) == 1
    assert "begun on 8 photos, 9 are here" in last_line(capsys)
    assert files(run_path) == before


def test_a_resumed_run_cannot_change_its_settings(
    run_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_code:
        main("--resume", run_path, "--seed", 3, *overrides("train_generator", "epochs=1"))
    assert exit_code.value.code == 2
    assert "leave out --set --seed" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_not_exported(
    run_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    RunDirectory.create(run_path, {"model": "generator", "config": {}})
    assert main("--export", run_path, "--to", run_path / "w.safetensors") == 1
    assert last_line(capsys).endswith("no checkpoint yet")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--photos", "x"],
        ["--labels", "x"],
        ["--export", "x"],
        ["--light", "x"],
        ["--to", "x"],
        ["--best"],
        ["--seed", "-1"],
    ],
    ids=" ".join,
)
def test_arguments_that_do_not_go_together(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(*arguments)
    assert caught.value.code == 2
    assert arguments[0] in last_line(capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA GPU")
def test_a_gpu_that_is_not_there(main: Callable[..., int], capsys: Any) -> None:
    assert main("--device", "cuda") == 1
    assert "no CUDA GPU" in last_line(capsys)
