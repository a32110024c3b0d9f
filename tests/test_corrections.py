from pathlib import Path

import numpy as np
import pytest

from tests.photo_folders import (
    LABELS,
    blind_detector,
    contents,
    files_below,
    make_folder,
    manifest,
    picture,
    refusal,
    run,
)
from tests.review_pages import official_labels, photos_of
from utils.blur import black
from utils.image_files import read_photo, write_photo


def corrected(name: str, original: Path, output: Path, boxes: list[list[float]]) -> None:
    """Check that a copy hides these boxes (x y w h), and nothing else."""
    clean = read_photo(original / name).pixels
    hidden = black(clean, [[x, y, x + w, y + h] for x, y, w, h in boxes])
    np.testing.assert_array_equal(read_photo(output / name).pixels, hidden)
    entry = manifest(output)[name]
    assert (entry["status"], entry["source"]) == ("done", "corrections")
    assert (entry["boxes"], entry["faces"], entry["scores"]) == (boxes, len(boxes), None)


def test_only_the_photos_of_the_file_are_done_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    labels = make_folder(folder)
    (folder / "film.mov").touch()
    command = (folder, "--labels", labels, "--method", "black")
    assert run(*command) == 0
    before, lines = contents(output), manifest(output)
    boxes = {"a.png": [[30.0, 30.0, 25.0, 20.0], [80.0, 5.0, 30.0, 31.0]], "e 1/deep/b.png": []}
    file = official_labels(tmp_path / "corrections.txt", boxes)
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert run(*command, "--corrections", file, "--review", page) == 0
    assert capsys.readouterr().out.startswith("2 photos written (1 without a face), 2 faces hidden")
    for name, wanted in boxes.items():
        corrected(name, folder, output, wanted)
    after = contents(output)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {*boxes, "manifest.jsonl"}
    assert after.keys() == before.keys()
    assert {n: e for n, e in manifest(output).items() if n not in boxes} == {
        n: e for n, e in lines.items() if n not in boxes
    }
    kinds = {photo["path"]: photo["kind"] for photo in photos_of(page)}
    assert kinds == {
        "a.png": "corrected",
        "e 1/deep/b.png": "corrected",
        "e 1/none.png": "faceless",
        "e2/c.jpg": "faces",
        "film.mov": "failed",
    }


def test_later_runs_keep_what_was_corrected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    make_folder(folder)
    write_photo(folder / "#1.png", picture(8))
    blind = blind_detector(tmp_path / "blind.safetensors")
    command = (folder, "--method", "black", "--detector", blind)
    assert run(*command) == 0
    boxes = [[10.0, 20.0, 31.0, 40.0]]
    file = official_labels(tmp_path / "c.txt", {"./#1.png": boxes, "a.png": boxes})
    assert run(*command, "--corrections", file) == 0
    assert run(*command) == 0
    assert "2 photos keep the boxes of an earlier correction" in capsys.readouterr().err
    for name in ("a.png", "#1.png"):
        corrected(name, folder, output, boxes)
    assert manifest(output)["e 1/none.png"]["source"] == "detector"

    whole = (folder / "a.png").read_bytes()  # not even a failure in between loses them
    (folder / "a.png").write_bytes(whole[:900])
    assert run(*command) == 1
    assert "a.png" not in files_below(output)
    (folder / "a.png").write_bytes(whole)
    assert run(*command) == 0
    corrected("a.png", folder, output, boxes)

    (output / "manifest.jsonl").rename(output / "manifest.jsonl.part")  # nor a crash
    assert run(*command) == 0
    corrected("a.png", folder, output, boxes)
    again = official_labels(tmp_path / "again.txt", {"a.png": []})
    assert run(*command, "--corrections", again) == 0
    corrected("a.png", folder, output, [])


def test_a_photo_that_no_label_listed_can_be_given_boxes_but_not_one_that_fails(
    tmp_path: Path,
) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    labels = make_folder(folder, {"a.png": LABELS["a.png"]})
    write_photo(folder / "new.png", picture(5))
    (folder / "cut.png").write_bytes(b"no picture")
    command = (folder, "--labels", labels, "--method", "black")
    assert run(*command) == 1
    boxes: list[list[float]] = [[1.0, 2.0, 30.0, 40.0]]
    file = official_labels(tmp_path / "c.txt", {"new.png": boxes, "cut.png": boxes})
    assert run(*command, "--corrections", file) == 1
    corrected("new.png", folder, output, boxes)
    entry = manifest(output)["cut.png"]
    assert (entry["status"], entry["output"], entry["faces"]) == ("failed", None, 0)


def test_corrections_that_do_not_fit_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    labels = make_folder(folder)
    command = (folder, "--labels", labels, "--method", "black")
    file = official_labels(tmp_path / "c.txt", {"a.png": []})
    line = refusal(capsys, *command, "--corrections", file)
    assert f"{file}: the manifest in {tmp_path / 'in_black'} does not know 'a.png'" in line
    assert run(*command) == 0
    capsys.readouterr()
    before = contents(tmp_path)
    gone = official_labels(tmp_path / "gone.txt", {"a.png": [], "gone.png": []})
    assert "'gone.png' is not among the photos" in refusal(capsys, *command, "--corrections", gone)
    gone.write_text("a.png\n2\n1 2 3 4 0 0 0 0 0 0\n")
    assert f"{gone}:3: the file ends after 1" in refusal(capsys, *command, "--corrections", gone)
    assert "No such file" in refusal(capsys, *command, "--corrections", tmp_path / "none.txt")
    gone.unlink()
    assert contents(tmp_path) == before


def test_one_name_in_two_folders_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blind = blind_detector(tmp_path / "blind.safetensors")
    for name in ("x", "y"):
        make_folder(tmp_path / name, {"a.png": []})
    command = (tmp_path / "x", tmp_path / "y", "--method", "black", "--detector", blind)
    assert run(*command) == 0
    capsys.readouterr()
    file = official_labels(tmp_path / "c.txt", {"a.png": [[1, 2, 30, 40]]})
    line = refusal(capsys, *command, "--corrections", file)
    assert f"'a.png' is a photo of both {tmp_path / 'x_black'} and {tmp_path / 'y_black'}" in line
