"""`evaluate.py ablation` from end to end, on a tree of drawn pictures."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
from models.ablation_cells import FULL, REMOVALS
from models.ablation_plan import PRESETS, Preset
from models.retinaface import RetinaFace
from tests.conftest import TreeMaker
from tests.evaluation_tree import evaluation_tree, flat_generator, recorded, run
from tests.training_runs import Place
from utils.config import load_config
from utils.run_dir import RunDirectory
from utils.widerface import read_labels

ROOT = Path(__file__).resolve().parents[1]
ROWS = (FULL, "without-rev", "without-cycl", "without-second-order")
NUMBERS = (
    *(
        "train_generator.frame=64",
        "train_generator.batch_size=2",
        "train_generator.moment_warmup=1",
    ),
    "train_generator.review_budget=0.5",  # above the distance of none: L_rev is never idle
    *("train_detector.frame=64", "train_detector.batch_size=2", "train_detector.epochs=2"),
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, make_tree: TreeMaker) -> Path:
    root = evaluation_tree(make_tree, tmp_path_factory.mktemp("wider"), train=8)
    state = {f"module.{name}": value for name, value in RetinaFace().body.state_dict().items()}
    torch.save({"state_dict": state}, root / "backbone.tar")
    return root


def options(place: Place, tree: Path, output: Path, *more: object) -> list[object]:
    """Two parts left out, one after the other; the preset's AP is out of reach."""
    chosen: list[object] = ["ablation", "--data", tree, "--output", output]
    chosen += ["--backbone", tree / "backbone.tar", "--critic", place.critic]
    chosen += ["--longest-side", 96, "--without", "rev", "cycl", "second-order"]
    for number in NUMBERS:
        chosen += ["--set", number]
    return [*chosen, *more]


@pytest.fixture(scope="module")
def whole(place: Place, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The results of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert run(*options(place, tree, output)) == 0
    yield output / "ablation"
    shutil.rmtree(output)


def rows_of(place: list[dict[str, Any]], key: str = "row") -> dict[str, dict[str, Any]]:
    return {entry[key]: entry for entry in place}


def kinds(folder: Path) -> dict[str, int]:
    """When each file below was written, in nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def made(folder: Path) -> dict[str, int]:
    """The same of all that a run must not make again."""
    places = ("generators", "variants", "detectors")
    return {file: when for name in places for file, when in kinds(folder / name).items()}


def test_what_is_left_behind(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        *("settings.json", "generator_photos.txt", "detector_photos.txt"),
        *("generators", "variants", "detectors", "results.json", "results.md"),
        *("kept.png", "closed.png", "distance.png"),
    }
    record = recorded(whole)
    values = record["results"]
    assert record["seeds"] == [0]
    assert list(values["summary"]["medium"]) == ["clean", "gaussian", "start", *ROWS]
    generators = rows_of(values["generators"])
    assert list(generators) == list(ROWS)
    for row, generator in generators.items():
        assert generator["photos"] == 4
        assert generator["steps"] == {"moments": 1, "generator": 2}
        left = {path.name for path in (whole / "generators" / f"{row}-0").iterdir()}
        assert left == {
            *("config.yaml", "stats.jsonl", "tensorboard"),
            *("weights.safetensors", "generator.json", "review.json"),
        }
    for detector in values["detectors"]:
        assert detector["steps"] == 4
        assert len(detector["ap"]) == 3
    for variant in (whole / "variants").iterdir():
        assert len(list(variant.rglob("*.jpg"))) == 4
    text = (whole / "results.md").read_text(encoding="utf-8")
    assert "1 moments steps and 2 generator steps, batches of 2 at 64 px, on 4 training" in text
    assert "4 steps in 2 epochs, batches of 2 crops of 64 px" in text


def test_nobody_is_judged_on_photos_that_the_generator_saw(whole: Path, tree: Path) -> None:
    seen, judged = (
        {photo.path for photo in read_labels(whole / f"{model}_photos.txt")}
        for model in ("generator", "detector")
    )
    assert len(seen) == len(judged) == 4
    assert not seen & judged
    everything = {photo.path for photo in read_labels(tree / "train" / "label.txt")}
    assert seen | judged == everything
    for cell in ("clean", "full"):
        settings = RunDirectory.open(whole / "detectors" / f"{cell}-0").settings
        assert settings["labels"] == str((whole / "detector_photos.txt").resolve())
        photos = whole / "variants" / ("clean" if cell == "clean" else "full-0")
        assert settings["photos"] == str(photos.resolve())
    settings = RunDirectory.open(whole / "generators" / "full-0").settings
    assert settings["labels"] == str((whole / "generator_photos.txt").resolve())


def test_each_part_is_left_out_of_its_own_generator(whole: Path) -> None:
    values = recorded(whole)["results"]
    generators = rows_of(values["generators"])
    assert all(generators[FULL]["losses"].values())
    for row, name in (("without-rev", "rev"), ("without-cycl", "cycl")):
        missing = [key for key, loss in generators[row]["losses"].items() if loss is None]
        assert missing == [name]
    # The budget is far below the start's distance: who knows of it comes nearer to the blur.
    distance = {row: review["smooth_l1"] for row, review in rows_of(values["reviews"]).items()}
    assert distance[FULL] < distance["without-rev"]
    assert distance[FULL] < distance["start"]
    assert generators[FULL]["rev_steps"] == 2
    assert generators["without-rev"]["rev_steps"] is None


def test_the_same_generator_is_not_judged_twice(whole: Path) -> None:
    """Without the second-order term L_cycl has no gradient: the same as without L_cycl."""
    values = recorded(whole)["results"]
    generators = rows_of(values["generators"])
    same = {row: generator["same_weights_as"] for row, generator in generators.items()}
    assert same == {**dict.fromkeys(ROWS), "without-second-order": "without-cycl"}
    assert generators["without-second-order"]["losses"]["cycl"] > 0
    detectors = rows_of(values["detectors"], "variant")
    assert detectors["without-second-order"]["ap"] == detectors["without-cycl"]["ap"]
    assert detectors["without-rev"]["ap"] != detectors[FULL]["ap"]
    for place in ("detectors", "variants"):
        names = {path.name for path in (whole / place).iterdir()}
        assert "without-cycl-0" in names
        assert "without-second-order-0" not in names
    assert "`without-second-order` and `without-cycl` (seed 0)" in (whole / "results.md").read_text(
        encoding="utf-8"
    )


def test_weak_clean_training_is_marked_and_nothing_is_made_again(
    whole: Path, place: Place, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (whole / "results.md").read_text(encoding="utf-8")
    assert "**INVALID: a clean-trained detector reaches AP 0." in text
    assert recorded(whole)["results"]["valid"] is False
    before = made(whole)
    assert run(*options(place, tree, whole.parent, "--minimum-clean-ap", 0)) == 0
    assert made(whole) == before
    assert "training" not in capsys.readouterr().out
    text = (whole / "results.md").read_text(encoding="utf-8")
    assert "INVALID" not in text
    assert "Valid: every clean-trained detector reaches the stated AP of 0 on medium" in text


def test_other_settings_are_refused(
    whole: Path, place: Place, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = kinds(whole)
    other = flat_generator(tmp_path / "black.safetensors", -1)
    for more, words in (
        (["--set", "train_generator.clip_norm=1"], "made with train_generator.clip_norm 500.0"),
        (["--set", "train_detector.lr=1e-3"], "made with train_detector.lr 0.002, not 0.001"),
        (["--init-generator", other], "made with init_generator "),
    ):
        assert run(*options(place, tree, whole.parent, *more)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("evaluate.py: ")
        assert words in line
    assert kinds(whole) == before


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_run_that_was_killed_ends_as_if_nothing_had_happened(
    whole: Path, place: Place, tree: Path, tmp_path: Path
) -> None:
    """Killed while it trains a generator, between a checkpoint and the end."""
    arguments = options(place, tree, tmp_path)
    arguments[arguments.index("cycl") : arguments.index("second-order") + 1] = []
    command = [sys.executable, ROOT / "evaluate.py", *arguments, "--threads", 1]
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = tmp_path / "ablation"
    deadline = time.monotonic() + 240
    while not list(folder.glob("generators/*/checkpoint-*.pt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not list(folder.glob("generators/*/generator.json"))

    assert run(*arguments, "--threads", 1) == 0
    again, undisturbed = (recorded(results)["results"] for results in (folder, whole))
    rows = ("clean", "gaussian", "start", FULL, "without-rev")
    assert tuple(again["summary"]["medium"]) == rows
    for row in rows:
        assert again["summary"]["medium"][row] == undisturbed["summary"]["medium"][row]
    for row in (FULL, "without-rev"):
        weights, expected = (
            results / "generators" / f"{row}-0" / "weights.safetensors"
            for results in (folder, whole)
        )
        assert weights.read_bytes() == expected.read_bytes()


def test_faults_take_one_line_and_start_nothing(
    place: Place, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, words in (
        (["--backbone", tmp_path / "no.tar"], "name them with --backbone"),
        (["--critic", tmp_path / "no.pth"], "no.pth"),
        (["--init-generator", place.critic], "not weights of BlurGenerator"),
        (["--set", "train_generator.nothing=1"], "no 'train_generator.nothing'"),
        (["--set", "train_generator.batch_size=5"], "4 photos make no batch of 5"),
        (["--set", "train_detector.batch_size=5"], "4 photos make no batch of 5"),
        (["--data", tmp_path / "nowhere"], "no labels for 'train'"),
    ):
        assert run(*options(place, tree, tmp_path / "out", *arguments)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("evaluate.py: ")
        assert words in line
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--without", "everything"], "invalid choice"),
        (["--jobs", "2", "--threads", "2"], "--threads is for one job"),
        (["--jobs", "0"], "1 or more"),
        (["--seeds", "-1"], "0 or more"),
    ],
)
def test_options_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["ablation", *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))
def test_presets_fit_the_recipe(preset: Preset) -> None:
    """With every part left out in turn; only that part differs."""
    whole = load_config(overrides=preset.recipe)
    for section in ("train_generator", "train_detector"):
        assert whole[section]["frame"] % 32 == 0
    for removal in REMOVALS.values():
        config = load_config(overrides=[*preset.recipe, removal])
        changed = [
            name
            for name, value in config["train_generator"].items()
            if value != whole["train_generator"][name]
        ]
        assert len(changed) == 1
        assert config["train_detector"] == whole["train_detector"]
