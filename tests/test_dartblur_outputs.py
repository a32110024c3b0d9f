import json
from pathlib import Path
from typing import Any

import pytest

import utils.photo_job
from models.weights import GENERATOR
from tests.photo_folders import (
    LABELS,
    blind_detector,
    contents,
    files_below,
    label_file,
    make_folder,
    manifest,
    picture,
    refusal,
    run,
)
from utils.image_files import read_photo, write_photo


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blind_detector(tmp_path_factory.mktemp("weights") / "blind.safetensors")


def test_single_photos_and_one_output_for_several(tmp_path: Path, blind: Path) -> None:
    make_folder(tmp_path / "in")
    write_photo(tmp_path / "one.png", picture(9))
    options = ("--method", "mosaic", "--detector", blind)
    assert run(tmp_path / "one.png", tmp_path / "in", *options) == 0
    assert files_below(tmp_path / "one_mosaic") == {"one.png", "manifest.jsonl"}
    assert files_below(tmp_path / "in_mosaic") == {*LABELS, "manifest.jsonl"}
    paths = (tmp_path / "one.png", tmp_path / "in", "--output", tmp_path / "out" / "all")
    assert run(*paths, *options) == 0
    assert files_below(tmp_path / "out" / "all") == {*LABELS, "one.png", "manifest.jsonl"}
    assert manifest(tmp_path / "out" / "all").keys() == {*LABELS, "one.png"}


def test_unsafe_outputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, foreign = tmp_path / "in", tmp_path / "foreign"
    make_folder(folder)
    write_photo(foreign / "a.png", picture(5))
    (tmp_path / "link").symlink_to(folder / "e2", target_is_directory=True)
    before = contents(tmp_path)
    for output in (folder, folder / "new", tmp_path / "link", tmp_path / "link" / "new"):
        line = refusal(capsys, folder, "--output", output)
        assert line.startswith(f"dartblur.py: error: {output}: the output lies inside the input")
    assert "contains the input" in refusal(capsys, folder / "e2", "--output", tmp_path)
    assert "contains the input" in refusal(capsys, folder / "a.png", "--output", folder)
    assert "lies inside" in refusal(capsys, folder, folder / "a.png")
    assert "not empty" in refusal(capsys, folder, "--output", foreign)
    assert "must be a folder" in refusal(capsys, folder, "--output", foreign / "a.png")
    assert "must be a folder" in refusal(capsys, folder / "a.png", "--output", tmp_path / "b.png")
    line = refusal(capsys, folder, foreign, "--output", tmp_path / "new")
    assert f"{folder / 'a.png'} and {foreign / 'a.png'} would both be written to" in line
    assert contents(tmp_path) == before
    assert not (tmp_path / "new").exists()


def test_links_lead_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    labels = make_folder(folder)
    options = (folder, "--labels", labels, "--method", "black")
    assert run(*options) == 0
    before = contents(folder)
    (output / "e2" / "c.jpg").unlink()
    (output / "e2").rmdir()
    (output / "e2").symlink_to(folder / "e2", target_is_directory=True)
    capsys.readouterr()
    assert run(*options) == 1
    error = "a link in the output folder leads out of it"
    assert f"{output / 'e2' / 'c.jpg'}: {error}" in capsys.readouterr().err
    assert contents(folder) == before
    (folder / "linked.png").symlink_to(output / "a.png")
    assert "contains the input" in refusal(capsys, *options)
    (folder / "linked.png").unlink()
    (folder / "out.png").symlink_to(label_file(tmp_path / "text.png", {}))
    label_file(labels, {"out.png": []})
    assert "leads out of the images folder" in refusal(capsys, *options)


def test_a_second_run_goes_over_the_first_and_a_crashed_one(tmp_path: Path, blind: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    make_folder(folder)
    options = ("--method", "black", "--detector", blind)
    assert run(folder / "a.png", "--output", output, *options) == 0
    crashed = {"path": "x.png", "status": "done", "method": "black"}
    (output / "manifest.jsonl").rename(output / "manifest.jsonl.part")
    with (output / "manifest.jsonl.part").open("a") as file:
        file.write(json.dumps(crashed) + '\n{"path": "half')
    assert run(folder / "e 1", "--output", output, *options) == 0
    assert files_below(output) == {"a.png", "deep/b.png", "none.png", "manifest.jsonl"}
    assert manifest(output).keys() == {"a.png", "deep/b.png", "none.png", "x.png"}


def test_other_types_are_listed_not_copied(
    tmp_path: Path, blind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    make_folder(folder)
    for name in ("e2/film.MP4", "phone.heic", "notes.txt"):
        (folder / name).write_bytes(b"?")
    assert run(folder, "--method", "black", "--detector", blind) == 0
    assert files_below(tmp_path / "in_black") == {*LABELS, "manifest.jsonl"}
    captured = capsys.readouterr()
    assert "0 failures, 2 skipped" in captured.out
    for name in ("e2/film.MP4", "phone.heic"):
        assert f"skipped, cannot read this type: {folder / name}" in captured.err
        assert manifest(tmp_path / "in_black")[name]["status"] == "skipped"
    assert "notes.txt" not in captured.err


def test_ctrl_c_leaves_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path, **options: Any) -> Any:
        if path.name == "none.png":
            raise KeyboardInterrupt
        return read_photo(path, **options)

    labels = make_folder(tmp_path / "in")
    monkeypatch.setattr(utils.photo_job, "read_photo", interrupted)
    assert run(tmp_path / "in", "--labels", labels, "--method", "black") == 130
    assert files_below(tmp_path / "in_black") == {"a.png", "e 1/deep/b.png", "manifest.jsonl"}
    assert manifest(tmp_path / "in_black").keys() == {"a.png", "e 1/deep/b.png"}
    captured = capsys.readouterr()
    assert captured.out.startswith("2 photos written, 3 faces hidden, 0 failures")
    assert captured.err.splitlines()[-1] == "dartblur.py: interrupted, 2 photos left"


def test_what_cannot_start_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    labels = make_folder(folder)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "film.mov").touch()
    bad = tmp_path / "bad.txt"
    bad.write_text("# ../in/a.png\n")
    options = ("--labels", labels, "--method", "black")
    for words, arguments in {
        "no such file or folder": (tmp_path / "nothing",),
        "not a photo of a type": (labels,),
        "no photos to anonymise (1 files": (tmp_path / "empty",),
        "prepare_widerface.py": ("--data", tmp_path),
        f"{bad}:1: photo path '../in/a.png' refused": (folder, "--labels", bad),
        "No such file": (folder, "--labels", tmp_path / "nothing.txt"),
        "no such weight file": (folder, "--labels", labels, "--weights", tmp_path / "none.pt"),
        "not weights of a RetinaFace": (folder, "--method", "black", "--detector", GENERATOR),
        "config.yaml has no 'detect.scores'": (folder, *options, "--set", "detect.scores=1"),
        "detect.score must be from 0 to 1": (folder, *options, "--score", "1.5"),
        "detect.enlarge must be from 1": (folder, *options, "--set", "detect.enlarge=0.5"),
        "output.jpeg_quality must be": (folder, *options, "--jpeg-quality", "0"),
    }.items():
        assert words in refusal(capsys, *arguments)
    assert not list(tmp_path.glob("*_*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ["in", "--data", "data"],
        ["in", "in", "--labels", "label.txt"],
        ["in/a.png", "--labels", "label.txt"],
        ["--labels", "label.txt"],
        ["in", "--labels", "label.txt", "--boxes", "detector"],
        ["in", "--boxes", "labels"],
        ["in", "--boxes", "detect-missing"],
        ["in", "--method", "pixels"],
        ["in", "--score", "high"],
    ],
)
def test_options_that_contradict_each_other(
    tmp_path: Path,
    arguments: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_folder(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert ": error: " in capsys.readouterr().err.splitlines()[-1]
