"""evaluate.py as it is called, on a tree of drawn pictures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import evaluate
from models import detector_evaluation
from models.weights import DETECTOR
from tests.conftest import TreeMaker
from tests.official_lists import Listed, write_lists
from utils.boxes import usable, xyxy_to_xywh
from utils.widerface import LabelledPhoto, read_labels

ROOT = Path(__file__).resolve().parents[1]
COUNTS = {"easy": 2, "medium": 4, "hard": 5}  # of the five faces on the photos that are there


def first_faces(photo: LabelledPhoto) -> list[list[float]]:
    """Two at most, as x y w h."""
    return xyxy_to_xywh(photo.boxes[usable(photo.boxes)][:2]).tolist()


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory, make_tree: TreeMaker) -> Path:
    """Three validation photos with 1, 2 and 2 faces; the lists hold a fourth, which is absent.

    Easy counts the first face of the last two photos, medium all but that of the first photo.
    """
    root = make_tree(tmp_path_factory.mktemp("wider"), photos=3, split="val", blurred=False)
    listed: Listed = {"event/9.jpg": ([[1, 1, 30, 30]], {name: [1] for name in COUNTS})}
    for photo in read_labels(root / "val" / "label.txt"):
        number = int(Path(photo.path).stem)
        rows = first_faces(photo)
        every = list(range(1, len(rows) + 1))
        first: list[int] = [1] if number else []
        medium = every if number else []
        listed[photo.path] = (rows, {"easy": first, "medium": medium, "hard": every})
    write_lists(root / "ground_truth", listed)
    return root


@pytest.fixture
def run(tmp_path: Path, tree: Path) -> Callable[..., int]:
    """Run `detection` on the tree, with results below tmp_path."""

    def call(*arguments: object, data: Path = tree) -> int:
        options = ["detection", "--data", data, "--output", tmp_path / "results", *arguments]
        return evaluate.main([str(option) for option in options])

    return call


def labels_as_predictions(tree: Path, folder: Path, left_out: str = "") -> Path:
    """Write the labelled boxes as another tool would, each with a score of 0.9."""
    for photo in read_labels(tree / "val" / "label.txt"):
        file = folder / Path(photo.path).with_suffix(".txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = [f"{x:g} {y:g} {w:g} {h:g} 0.9" for x, y, w, h in first_faces(photo)]
        if file.stem != left_out:
            file.write_text("\n".join([photo.path, str(len(rows)), *rows]))
    return folder


def recorded(folder: Path) -> dict[str, Any]:
    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    text = (folder / "results.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)


def test_the_predictions_of_another_detector(
    run: Callable[..., int], tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It found all but the face of the first photo: 4 of 5."""
    predictions = labels_as_predictions(tree, tmp_path / "theirs", left_out="0")
    assert run("--predictions", predictions, "--name", "theirs") == 0
    captured = capsys.readouterr()
    assert captured.err == (
        f"evaluate.py: 1 of 3 photos have no file in {predictions}: "
        "counted as photos without a detection\n"
    )
    assert captured.out.splitlines()[:3] == [
        "easy: AP 1.0000, 2 faces",
        "medium: AP 1.0000, 4 faces",
        "hard: AP 0.8000, 5 faces",
    ]
    folder = tmp_path / "results" / "theirs"
    assert {path.name for path in folder.iterdir()} == {
        *("results.json", "results.md", "precision_recall.png"),
    }
    record = recorded(folder)
    values = record["results"]
    assert (values["photos"], values["photos_listed"]) == (3, 4)
    assert values["photos_without_predictions"] == 1
    assert {name: found["faces"] for name, found in values["difficulties"].items()} == COUNTS
    assert values["difficulties"]["hard"]["ap"] == 0.8
    assert values["difficulties"]["hard"]["recall"] == [0.8] * 1000
    assert record["seeds"] == []
    assert {"matplotlib", "scipy", "torch"} <= record["provenance"]["versions"].keys()
    text = (folder / "results.md").read_text(encoding="utf-8")
    assert "| hard | 0.8000 | 5 |" in text
    assert "3 of the 4 WIDER FACE validation photos" in text
    assert "not comparable with published figures" in text
    with Image.open(folder / "precision_recall.png") as image:
        assert image.info["Commit"] == record["provenance"]["commit"]


def test_what_was_detected_can_be_scored_again(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped detector on the two portraits of this repository, boxes drawn by hand."""
    if not DETECTOR.is_file():
        pytest.skip(f"{DETECTOR} is not here")
    portraits: dict[str, list[float]] = {
        "eileen_collins": [180, 62, 90, 115],
        "grace_hopper": [180, 120, 165, 210],
    }
    data = tmp_path / "data"
    everything: dict[str, list[int]] = {name: [1] for name in COUNTS}
    write_lists(
        data / "ground_truth",
        {f"event/{name}.jpg": ([box], everything) for name, box in portraits.items()},
    )
    shutil.copytree(ROOT / "img" / "samples", data / "val" / "images" / "event")
    assert run(data=data) == 0
    folder = tmp_path / "results" / "detection"
    first = recorded(folder)["results"]
    assert first["photos_without_predictions"] == 0
    name = DETECTOR.relative_to(ROOT)
    assert first["detections"] == f"{name}, own size, score at least 0.02, NMS 0.4"
    assert [found["ap"] for found in first["difficulties"].values()] == [1.0] * 3
    files = sorted((folder / "predictions" / "event").iterdir())
    assert [file.stem for file in files] == list(portraits)
    rows = [row for file in files for row in file.read_text().splitlines()[2:]]
    doubtful = [float(row.split()[-1]) for row in rows]
    assert 0.02 <= min(doubtful) < 0.2  # a curve needs them too
    assert run("--predictions", folder / "predictions", "--name", "again", data=data) == 0
    again = recorded(tmp_path / "results" / "again")["results"]
    assert again["difficulties"] == first["difficulties"]

    # One photo from elsewhere, reduced, with its predictions in a place of their own.
    elsewhere = tmp_path / "photos" / "event"
    elsewhere.mkdir(parents=True)
    shutil.copy(ROOT / "img" / "samples" / "grace_hopper.jpg", elsewhere)
    options = ["--images", elsewhere.parent, "--longest-side", 160, "--name", "other"]
    assert run(*options, "--write-predictions", tmp_path / "new", data=data) == 0
    other = recorded(tmp_path / "results" / "other")["results"]
    assert (other["photos"], other["difficulties"]["hard"]["ap"]) == (1, 1.0)
    assert "longest side 160" in other["detections"]
    (new,) = (tmp_path / "new" / "event").iterdir()
    assert new.read_text() != files[1].read_text()
    assert not (tmp_path / "results" / "other" / "predictions").exists()
    assert capsys.readouterr().out.count("results.md") == 3


def test_a_set_without_a_face_has_no_ap(
    run: Callable[..., int], tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    (images / "event").mkdir(parents=True)
    shutil.copy(tree / "val" / "images" / "event" / "0.jpg", images / "event")
    predictions = labels_as_predictions(tree, tmp_path / "theirs")
    assert run("--predictions", predictions, "--images", images) == 0
    assert capsys.readouterr().out.splitlines()[0] == "easy: AP –, 0 faces"
    difficulties = recorded(tmp_path / "results" / "detection")["results"]["difficulties"]
    assert difficulties["easy"]["ap"] is None
    assert difficulties["hard"]["ap"] == 1.0


Change = Callable[[Path, Path], list[object]]


def malformed_predictions(tree: Path, place: Path) -> list[object]:
    folder = labels_as_predictions(tree, place / "theirs")
    (folder / "event" / "1.txt").write_text("1\n1\n1 2 3 4\n")
    return ["--predictions", folder]


def used_folder(tree: Path, place: Path) -> list[object]:
    return ["--write-predictions", labels_as_predictions(tree, place / "theirs")]


def no_lists(tree: Path, place: Path) -> list[object]:
    return ["--data", shutil.copytree(tree / "val", place / "data")]


def broken_photo(tree: Path, place: Path) -> list[object]:
    images = shutil.copytree(tree / "val" / "images", place / "images")
    (images / "event" / "1.jpg").write_bytes(b"no picture")
    return ["--images", images]


def results_in_a_file(tree: Path, place: Path) -> list[object]:
    (place / "results").write_text("a file")
    return ["--predictions", labels_as_predictions(tree, place / "theirs")]


FAULTS: list[tuple[Change, str]] = [
    (no_lists, "wider_face_val.mat: no such file"),
    (lambda tree, place: ["--images", place], "none of the 4 photos"),
    (lambda tree, place: ["--weights", place / "w.pth"], "no such weight file"),
    (lambda tree, place: ["--predictions", place / "no"], "no predictions for any of the 3"),
    (malformed_predictions, "1.txt:3: "),
    (used_folder, "not an empty folder"),
    (results_in_a_file, "results"),
]


@pytest.mark.parametrize(
    ("change", "words"), FAULTS, ids=[words.replace(" ", "-") for _, words in FAULTS]
)
def test_faults_take_one_line_and_leave_no_results(
    run: Callable[..., int],
    tree: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Change,
    words: str,
) -> None:
    assert run(*change(tree, tmp_path)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("evaluate.py: ")
    assert words in line
    assert not (tmp_path / "results").is_dir()


def test_a_broken_photo_is_named(
    run: Callable[..., int], tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not DETECTOR.is_file():
        pytest.skip(f"{DETECTOR} is not here")
    assert run(*broken_photo(tree, tmp_path)) == 1
    line = capsys.readouterr().err.splitlines()[-1]  # behind the progress bar
    assert line.startswith("evaluate.py: ")
    assert "1.jpg: " in line
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA GPU")
def test_a_gpu_that_is_not_there(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--device", "cuda") == 1
    assert "no CUDA GPU" in capsys.readouterr().err


def test_missing_packages_are_named_before_the_work(
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(detector_evaluation, "PACKAGES", ("scipy", "no-such-package"))
    assert run("--data", tmp_path / "nowhere") == 1
    assert capsys.readouterr().err == (
        "evaluate.py: no-such-package not installed: pip install -r requirements-eval.txt\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--predictions", "a", "--weights", "b"], "--weights means nothing"),
        (["--predictions", "a", "--write-predictions", "b"], "--write-predictions means nothing"),
        (["--predictions", "a", "--longest-side", "640"], "--longest-side means nothing"),
        (["--longest-side", "0"], "32 or more"),
        (["--name", "../elsewhere"], "without a path"),
        (["--name", ""], "without a path"),
        (["--name", ".."], "without a path"),
    ],
)
def test_options_that_make_no_sense(
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_command_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_the_manual_needs_no_evaluation_package() -> None:
    """And it is the script's docstring: seen from outside, as a user calls it."""
    block = "import sys, runpy; sys.modules['scipy'] = sys.modules['matplotlib'] = None; "
    block += (
        "sys.argv = ['evaluate.py', '--help']; runpy.run_path('evaluate.py', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", block],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "python evaluate.py detection --predictions DIR" in done.stdout
