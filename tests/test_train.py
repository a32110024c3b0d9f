"""train.py from its command line, on pictures drawn for the purpose."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from models.generator import BlurGenerator
from models.retinaface import RetinaFace
from models.weights import load_weights, save_weights
from tests.training_runs import (
    Place,
    assert_same_checkpoint,
    log_of,
    newest,
    overrides,
)
from utils.run_dir import RunDirectory


def test_generator_runs_through_all_passes(finished: Path) -> None:
    log = log_of(finished)
    assert [entry["step"] for entry in log] == list(range(1, len(log) + 1))
    passes = [("warm", 0, 2), ("adversary", 0, 4), ("moments", 0, 1), ("generator", 0, 4)]
    expected = [(kind, epoch) for kind, epoch, batches in passes for _ in range(batches)]
    assert [(entry["kind"], entry["epoch"]) for entry in log] == expected
    losses = {"loss", "rev", "proc", "post", "cycl", "adversary", "gradient_norm"}
    wanted = {"warm": {"distance"}, "generator": losses}
    for entry in log:
        names = set(entry) - {"step", "kind", "epoch"}
        assert names == wanted.get(entry["kind"], {"adversary"})
        assert all(math.isfinite(entry[name]) for name in names)
    steps = [entry for entry in log if entry["kind"] == "generator"]
    for name in losses - {"rev"}:  # the review distance may lie within its budget
        assert all(entry[name] > 0 for entry in steps), name
    for entry in steps:
        total = sum(entry[name] for name in ("rev", "proc", "post", "cycl"))
        assert entry["loss"] == pytest.approx(total, rel=1e-5)
    assert {file.name for file in finished.iterdir()} == {
        "config.yaml",
        "stats.jsonl",
        "checkpoint-00000008.pt",
        "checkpoint-00000011.pt",
        "best.json",
        "tensorboard",
    }
    best = json.loads((finished / "best.json").read_text())
    means = {8: steps[0]["loss"], 11: sum(entry["loss"] for entry in steps[1:]) / 3}
    step = min(means, key=lambda step: means[step])
    assert (best["step"], best["loss"]) == (step, pytest.approx(means[step]))


def board_of(run: Path) -> EventAccumulator:
    board = EventAccumulator(str(run / "tensorboard"), {"images": 0, "scalars": 0})  # all of them
    board.Reload()
    return board


def test_tensorboard_shows_losses_and_pictures(finished: Path) -> None:
    board = board_of(finished)
    (picture,) = board.Images("pictures")
    assert picture.step == 9  # pictures_every
    pixels = np.array(Image.open(io.BytesIO(picture.encoded_image_string))).astype(float)
    # Two images, each clean, blurred and redrawn, 4 px apart.
    assert pixels.shape == (2 * 68 + 4, 3 * 68 + 4, 3)
    clean, blurred, redrawn = (pixels[4:68, x : x + 64] for x in (4, 72, 140))
    assert abs(clean - blurred).mean() > 1
    assert abs(redrawn - blurred).mean() > 0.1
    for entry in log_of(finished):
        for name, value in entry.items():
            if isinstance(value, float):
                shown = {e.step: e.value for e in board.Scalars(f"{entry['kind']}/{name}")}
                assert shown[entry["step"]] == pytest.approx(value, rel=1e-6)


def test_export(finished: Path, tmp_path: Path, main: Callable[..., int]) -> None:
    assert main("--export", finished, "--to", tmp_path / "mine.safetensors") == 0
    generator = BlurGenerator()
    load_weights(generator, tmp_path / "mine.safetensors")
    state = newest(finished)
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
    state = newest(stopped)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, state["detector"][name])


def test_the_best_checkpoint_is_kept_beside_the_newest(
    place: Place, run_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """`keep_checkpoints`, `best.json` and `--export --best`; pictures change nothing."""
    run, plain = run_path / "run", run_path / "plain"
    numbers = "epochs=4 keep_checkpoints=1 pictures_every=3"
    assert main(*place.detector(run, *overrides("train_detector", numbers))) == 0
    log = log_of(run)
    means = {step: (log[step - 2]["loss"] + log[step - 1]["loss"]) / 2 for step in range(2, 17, 2)}
    step = min(means, key=lambda step: means[step])
    assert step < 16, "a case where the newest is the best shows nothing"
    best = json.loads((run / "best.json").read_text())
    name = f"checkpoint-{step:08d}.pt"
    assert best == {"file": name, "step": step, "loss": pytest.approx(means[step])}
    assert {file.name for file in run.glob("*.pt")} == {name, "checkpoint-00000016.pt"}

    for option, at in (((), 16), (("--best",), step)):
        weights = run_path / f"{at}.safetensors"
        capsys.readouterr()
        assert main("--export", run, "--to", weights, *option) == 0
        assert f"at step {at}" in capsys.readouterr().out
        detector = RetinaFace()
        load_weights(detector, weights)
        state = torch.load(run / f"checkpoint-{at:08d}.pt", weights_only=True)
        for key, value in detector.state_dict().items():
            assert torch.equal(value, state["detector"][key])

    assert [picture.step for picture in board_of(run).Images("pictures")] == [3, 6, 9, 12, 15]
    assert main(*place.detector(plain, *overrides("train_detector", "epochs=4"))) == 0
    assert log_of(plain) == log
    kept = {f"checkpoint-{at:08d}.pt" for at in (step, 12, 14, 16)}
    assert {file.name for file in plain.glob("*.pt")} == kept


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
    monkeypatch.setattr(RunDirectory, "save", lambda self, state, *_: states.append(state))
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
