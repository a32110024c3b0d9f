"""`evaluate.py accessibility`, on the two portraits of this repository."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import evaluate
from models.weights import DETECTOR, GENERATOR
from tests.evaluation_tree import DIFFICULTIES, flat_generator, recorded, run
from tests.official_lists import write_lists

ROOT = Path(__file__).resolve().parents[1]
VARIANTS = ["clean", "gaussian", "black", "dartblur"]
PORTRAITS: dict[str, list[float]] = {
    "event/eileen_collins.jpg": [180, 62, 90, 115],
    "event/grace_hopper.jpg": [180, 120, 165, 210],
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not DETECTOR.is_file() or not GENERATOR.is_file():
        pytest.skip(f"the weights are not in {DETECTOR.parent}")
    root = tmp_path_factory.mktemp("wider")
    shutil.copytree(ROOT / "img" / "samples", root / "val" / "images" / "event")
    lines = [f"# {path}\n{' '.join(map(str, box))}\n" for path, box in PORTRAITS.items()]
    (root / "val" / "label.txt").write_text("".join(lines), encoding="utf-8")
    write_lists(
        root / "ground_truth",
        {path: ([box], {name: [1] for name in DIFFICULTIES}) for path, box in PORTRAITS.items()},
    )
    return root


def options(tree: Path, output: Path, *more: object) -> list[object]:
    chosen: list[object] = ["accessibility", "--data", tree, "--output", output]
    return [*chosen, "--longest-side", 320, *more]


def test_each_variant_is_searched(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the AP that the command `detection` finds in the folder of its photos."""
    assert run(*options(tree, tmp_path, "--variants", *VARIANTS)) == 0
    folder = tmp_path / "accessibility"
    values = recorded(folder)["results"]
    assert list(values["variants"]) == VARIANTS
    for variant in VARIANTS:
        images = folder / "photos" / variant
        more = ["--images", images, "--longest-side", 320, "--name", variant]
        assert run("detection", "--data", tree, "--output", tmp_path, *more) == 0
        found = recorded(tmp_path / variant)["results"]["difficulties"]
        for name in DIFFICULTIES:
            ours = values["variants"][variant][name]
            assert ours["ap"] == pytest.approx(found[name]["ap"], abs=1e-6)
            assert values["kept"][variant][name] == pytest.approx(ours["ap"])  # clean has 1
    assert values["variants"]["clean"]["hard"]["ap"] == 1.0
    assert values["variants"]["black"]["hard"]["ap"] < 0.9
    text = (folder / "results.md").read_text(encoding="utf-8")
    assert "| clean | 1.0000 | 1.0000 | 1.0000 | 100.0 % | 100.0 % | 100.0 % |" in text
    assert (folder / "kept.png").stat().st_size > 1000
    assert "clean: AP easy 1.0000, medium 1.0000, hard 1.0000\n" in capsys.readouterr().out


def test_photos_are_written_once_and_with_one_generator(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = options(tree, tmp_path, "--variants", "clean", "black")
    assert run(*arguments) == 0
    files = list((tmp_path / "accessibility" / "photos").rglob("*.jpg"))
    before = {file: file.stat().st_mtime_ns for file in files}
    assert len(before) == 4
    assert run(*arguments) == 0
    assert {file: file.stat().st_mtime_ns for file in files} == before
    capsys.readouterr()
    other = flat_generator(tmp_path / "other.safetensors", 1)
    assert run(*arguments, "--generator", other) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "made with weights " in line
    assert "another folder with --name" in line


def test_a_photo_without_labels_is_refused(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be searched as it is, or be missing from some variants."""
    data = Path(shutil.copytree(tree, tmp_path / "data"))
    labels = data / "val" / "label.txt"
    labels.write_text(labels.read_text().partition("# event/grace")[0])
    assert run(*options(data, tmp_path)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"evaluate.py: {labels}: lacks 1 of the 2 photos in ")
    assert line.endswith("first event/grace_hopper.jpg")
    assert not os.path.lexists(tmp_path / "accessibility")


def test_clean_photos_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(["accessibility", "--variants", "black"])
    assert caught.value.code == 2
    assert "must hold clean" in capsys.readouterr().err.splitlines()[-1]
