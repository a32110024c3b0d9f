"""`evaluate.py artifacts` from end to end, on a tree of drawn pictures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
from models.artifact_cells import curve_epochs
from models.artifact_evaluation import PRESETS
from models.variants import fold_of
from tests.conftest import TreeMaker
from tests.evaluation_tree import evaluation_tree, flat_generator, recorded, run
from utils.config import load_config
from utils.run_dir import RunDirectory
from utils.widerface import read_labels

ROOT = Path(__file__).resolve().parents[1]
EPOCHS = 6
STEPS = 2 * EPOCHS  # 8 photos in batches of 4
NUMBERS = ("frame=64", "batch_size=4", f"epochs={EPOCHS}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, make_tree: TreeMaker) -> Path:
    root = evaluation_tree(make_tree, tmp_path_factory.mktemp("wider"))
    flat_generator(root / "black.safetensors", -1)
    return root


def options(tree: Path, output: Path, *more: object) -> list[object]:
    """Two detectors from random numbers; the preset's AP is out of their reach."""
    chosen: list[object] = ["artifacts", "--data", tree, "--output", output]
    chosen += ["--preset", "small", "--variants", "clean", "gaussian", "--init", "scratch"]
    chosen += ["--longest-side", 96, "--generator", tree / "black.safetensors"]
    for number in NUMBERS:
        chosen += ["--set", f"train_detector.{number}"]
    return [*chosen, *more]


@pytest.fixture(scope="module")
def whole(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a run that nothing disturbed."""
    output = tmp_path_factory.mktemp("whole")
    assert run(*options(tree, output)) == 0
    return output / "artifacts"


def log_of(cell: Path) -> list[dict[str, Any]]:
    lines = (cell / "stats.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def kinds(folder: Path) -> dict[str, int]:
    """When each file below was written, in nanoseconds."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_what_is_left_behind(whole: Path, tree: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {
        *("settings.json", "variants", "cells", "results.json", "results.md"),
        *("kept.png", "learning_curves.png", "precision_recall.png"),
    }
    record = recorded(whole)
    values = record["results"]
    assert record["seeds"] == [0]
    assert [(cell["variant"], cell["seed"]) for cell in values["cells"]] == [
        ("clean", 0),
        ("gaussian", 0),
    ]
    for cell in values["cells"]:
        assert (cell["photos"], cell["steps"]) == (8, STEPS)
        assert [point["epoch"] for point in cell["points"]] == [1, 2, 4, 5, 6]
        assert [entry["step"] for entry in log_of(whole / "cells" / f"{cell['variant']}-0")] == [
            *range(1, STEPS + 1)
        ]
    setup = values["setup"]
    assert setup["training_faces"] == 15
    assert setup["train_detector"]["frame"] == 64
    first, last = (values["cells"][0]["points"][index]["ap"] for index in (0, -1))
    assert first != last
    clean = values["summary"]["medium"]["clean"]
    assert clean == {"ap": [last["medium"], None], "kept": [1.0, None], "closed": clean["closed"]}


def test_the_ap_is_that_of_the_exported_detector(
    whole: Path, tree: Path, tmp_path: Path, main: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exported by train.py and measured by the command `detection`."""
    for variant in ("clean", "gaussian"):
        weights = tmp_path / f"{variant}.safetensors"
        assert main("--export", whole / "cells" / f"{variant}-0", "--to", weights) == 0
        measured = ["--data", tree, "--output", tmp_path, "--name", variant, "--weights", weights]
        assert run("detection", *measured, "--longest-side", 96) == 0
        found = recorded(tmp_path / variant)["results"]["difficulties"]
        cells = {cell["variant"]: cell for cell in recorded(whole)["results"]["cells"]}
        for name, ap in cells[variant]["points"][-1]["ap"].items():
            assert found[name]["ap"] == pytest.approx(ap, abs=1e-3)  # coordinates are rounded


def test_weak_clean_training_is_marked_and_nothing_is_run_again(
    whole: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (whole / "results.md").read_text(encoding="utf-8")
    assert "**INVALID: a clean-trained detector reaches AP 0." in text
    assert recorded(whole)["results"]["valid"] is False
    before = {**kinds(whole / "cells"), **kinds(whole / "variants")}
    assert run(*options(tree, whole.parent, "--minimum-clean-ap", 0)) == 0
    assert {**kinds(whole / "cells"), **kinds(whole / "variants")} == before
    assert "training" not in capsys.readouterr().out
    text = (whole / "results.md").read_text(encoding="utf-8")
    assert "INVALID" not in text
    assert "Valid: every clean-trained detector reaches the stated AP of 0 on medium" in text


def test_other_settings_are_refused(
    whole: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = kinds(whole)
    for more, words in (
        (["--set", "train_detector.lr=1e-3"], "made with train_detector.lr 0.002, not 0.001"),
        (["--longest-side", "128"], "made with longest_side 96, not 128"),
        (["--set", "output.jpeg_quality=80"], "made with output.jpeg_quality 95, not 80"),
    ):
        assert run(*options(tree, whole.parent, *more)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("evaluate.py: ")
        assert words in line
    assert kinds(whole) == before


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_run_that_was_killed_ends_as_if_nothing_had_happened(
    whole: Path, tree: Path, tmp_path: Path
) -> None:
    """Two cells at once; the parent is killed, its cells end with it, one process goes on."""
    # What is written already is not written again, which saves this test two processes.
    shutil.copytree(whole / "variants", tmp_path / "artifacts" / "variants")
    command = [sys.executable, ROOT / "evaluate.py", *options(tree, tmp_path, "--jobs", 2)]
    process = subprocess.Popen(
        [str(word) for word in command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    cells = tmp_path / "artifacts" / "cells"
    deadline = time.monotonic() + 120
    while not list(cells.glob("*/checkpoint-*.pt")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # until nobody holds the pipe: the cells ended too
    assert not list(cells.glob("*/cell.json"))
    left = {file: file.stat().st_mtime_ns for file in cells.glob("*/checkpoint-*.pt")}
    assert left

    assert run(*options(tree, tmp_path, "--threads", 1)) == 0
    again = recorded(tmp_path / "artifacts")["results"]
    undisturbed = recorded(whole)["results"]
    assert again["summary"] == undisturbed["summary"]
    for name in ("clean-0", "gaussian-0"):
        losses = [
            [(entry["step"], entry["loss"]) for entry in log_of(folder / name)]
            for folder in (cells, whole / "cells")
        ]
        assert losses[0] == losses[1]
        (checkpoint,) = (cells / name).glob("*.pt")
        weights = [
            torch.load(folder / name / checkpoint.name, weights_only=True)["detector"]
            for folder in (cells, whole / "cells")
        ]
        assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_folds(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """First the label files of the halves, for train.py; then the measurement itself."""
    chosen = ["--folds", 2, "--set", "train_detector.epochs=1"]
    arguments = options(tree, tmp_path)
    arguments = arguments[: arguments.index("--generator")]
    for number in ("frame=64", "batch_size=4"):
        chosen += ["--set", f"train_detector.{number}"]
    assert run(*arguments, *chosen) == 0
    folder = tmp_path / "artifacts"
    assert {path.name for path in folder.iterdir()} == {"fold0.txt", "fold1.txt"}
    halves = [read_labels(folder / f"fold{fold}.txt") for fold in (0, 1)]
    whole = {photo.path: photo for photo in read_labels(tree / "train" / "label.txt")}
    assert sorted(photo.path for half in halves for photo in half) == sorted(whole)
    for fold, half in enumerate(halves):
        assert half
        assert all(fold_of(photo.path) == fold for photo in half)
        assert all((photo.boxes == whole[photo.path].boxes).all() for photo in half)

    white = flat_generator(tmp_path / "white.safetensors", 1)
    arguments[arguments.index("gaussian")] = "dartblur"
    weights = ["--fold-weights", white, tree / "black.safetensors"]
    assert run(*arguments, *chosen, *weights) == 0
    setup = recorded(folder)["results"]["setup"]
    assert setup["folds"] == 2
    assert [Path(file).name for file in setup["generators"]] == [
        "white.safetensors",
        "black.safetensors",
    ]
    assert "each on the half of the photos that it was not trained on" in (
        folder / "results.md"
    ).read_text(encoding="utf-8")


def test_a_cell_is_a_run_of_train_py(whole: Path, tree: Path, main: Any, tmp_path: Path) -> None:
    """With the same keys, and to be continued by it."""
    (tmp_path / "detector").mkdir()
    arguments = ["--model", "detector", "--photos", tree / "train" / "images"]
    arguments += ["--labels", tree / "train" / "label.txt", "--run", tmp_path / "run"]
    for number in NUMBERS[:2]:
        arguments += ["--set", f"train_detector.{number}"]
    assert main(*arguments, "--set", "train_detector.epochs=1") == 0
    theirs = RunDirectory.open(tmp_path / "run").settings
    ours = RunDirectory.open(whole / "cells" / "clean-0").settings
    assert ours.keys() == theirs.keys()
    assert main("--resume", whole / "cells" / "clean-0") == 0


def test_presets_fit_the_recipe() -> None:
    for preset in PRESETS.values():
        config = load_config(overrides=preset.recipe)
        assert preset.variants[0] == "clean"
        assert config["train_detector"]["frame"] % 32 == 0


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, [1]), (3, [1, 2, 3]), (5, [1, 2, 3, 4, 5]), (16, [3, 6, 10, 13, 16])],
)
def test_learning_curves_end_with_the_trained_detector(epochs: int, expected: list[int]) -> None:
    assert curve_epochs(epochs) == expected


def test_faults_take_one_line_and_start_nothing(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(tree, tmp_path / "data"))
    shutil.rmtree(data / "ground_truth")
    few = ["--set", "train_detector.batch_size=9"]
    for arguments, words in (
        (["--init", "imagenet", "--backbone", tmp_path / "no.tar"], "or take --init scratch"),
        (["--generator", tmp_path / "no.safetensors"], "no.safetensors"),
        (["--set", "train_detector.nothing=1"], "no 'train_detector.nothing'"),
        (["--data", data], "wider_face_val.mat"),
        (["--data", tmp_path / "nowhere"], "no labels for 'train'"),
    ):
        assert run(*options(tree, tmp_path / "out", *arguments)) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("evaluate.py: ")
        assert words in line
        assert not (tmp_path / "out").exists()
    assert run(*options(tree, tmp_path / "out", *few)) == 1
    assert "make no batch of 9" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--variants", "gaussian"], "must hold clean"),
        (["--variants", "blurred"], "invalid choice"),
        (["--fold-weights", "a", "b"], "goes with --folds 2"),
        (["--folds", "2", "--fold-weights", "a", "b", "--generator", "c"], "means nothing"),
        (["--init", "scratch", "--backbone", "a"], "means nothing"),
        (["--jobs", "2", "--threads", "2"], "--threads is for one job"),
        (["--jobs", "0"], "1 or more"),
        (["--seeds", "-1"], "0 or more"),
        (["--longest-side", "16"], "32 or more"),
    ],
)
def test_options_that_make_no_sense(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["artifacts", *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
