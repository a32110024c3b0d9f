"""dartblur.py with each kind of label file, and with labels and the detector together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.photo_folders import (
    LABELS,
    blind_detector,
    boxes_of,
    contents,
    files_below,
    label_file,
    make_folder,
    manifest,
    picture,
    refusal,
    run,
)
from utils.blur import black
from utils.image_files import read_photo, write_photo

SAMPLES = Path(__file__).resolve().parents[1] / "img" / "samples"


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blind_detector(tmp_path_factory.mktemp("weights") / "blind.safetensors")


def coco_file(path: Path, labels: dict[str, list[str]], size: tuple[int, int] = (120, 100)) -> Path:
    images = [
        {"id": index, "file_name": name, "width": size[0], "height": size[1]}
        for index, name in enumerate(labels)
    ]
    annotations = [
        {"image_id": index, "category_id": 5, "bbox": [float(field) for field in row.split()]}
        for index, rows in enumerate(labels.values())
        for row in rows
    ]
    categories = [{"id": 5, "name": "face"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document))
    return path


def yolo_folder(folder: Path, labels: dict[str, list[str]]) -> Path:
    for name, rows in labels.items():
        lines = []
        for row in rows:
            x, y, w, h = (float(field) for field in row.split())
            lines.append(
                f"0 {(x + w / 2) / 120:.6f} {(y + h / 2) / 100:.6f} {w / 120:.6f} {h / 100:.6f}\n"
            )
        path = (folder / name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    return folder


def entries(folder: Path) -> dict[str, dict[str, Any]]:
    """What the manifest says, less the digests of the numbers as their file has them."""
    return {
        path: {key: value for key, value in entry.items() if key != "made_by"}
        for path, entry in manifest(folder).items()
    }


def test_all_kinds_of_label_file_say_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    places = {
        "retinaface": make_folder(folder),
        "coco": coco_file(tmp_path / "label.json", LABELS),
        "yolo": yolo_folder(tmp_path / "labels", LABELS),
        "beside": yolo_folder(folder, LABELS),
    }
    for name, place in places.items():
        options = ("--labels", place, "--output", tmp_path / name / "out", "--method", "black")
        assert run(folder, *options) == 0
        captured = capsys.readouterr()
        assert captured.out.startswith("4 photos written (1 without a face), 4 faces hidden")
        told = "label classes hidden (boxes): " in captured.err
        assert told == (name != "retinaface")
    expected = contents(tmp_path / "retinaface" / "out")
    assert expected.keys() == {*LABELS, "manifest.jsonl"}
    for name in ("coco", "yolo", "beside"):
        found = contents(tmp_path / name / "out")
        assert found.keys() == expected.keys()
        assert entries(tmp_path / name / "out") == entries(tmp_path / "retinaface" / "out")
        assert all(found[photo] == expected[photo] for photo in LABELS)


def test_a_missing_yolo_file_is_not_listed_an_empty_one_is_no_face(
    tmp_path: Path, blind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    make_folder(folder)
    labels = yolo_folder(tmp_path / "labels", {"a.png": [], "e2/c.jpg": LABELS["e2/c.jpg"]})
    options = (folder, "--labels", labels, "--method", "black")
    assert run(*options) == 1
    assert files_below(output) == {"a.png", "e2/c.jpg", "manifest.jsonl"}
    assert f"{folder / 'e 1/none.png'}: not in the label file" in capsys.readouterr().err
    assert manifest(output)["a.png"]["faces"] == 0
    assert run(*options, "--boxes", "detect-missing", "--detector", blind) == 0
    entries = manifest(output)
    assert [entries[name]["source"] for name in ("a.png", "e 1/none.png")] == ["labels", "detector"]

    photo = folder / "a.jpg"
    write_photo(photo, picture(4))
    assert run(*options, "--boxes", "detect-missing", "--detector", blind) == 1
    assert files_below(output) == {*LABELS, "manifest.jsonl"} - {"a.png"}
    assert "a.txt would belong to 2 photos, 'a.jpg' and 'a.png'" in capsys.readouterr().err


def test_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    make_folder(folder, {"a.png": []})
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.1 0.1\n2 0.8 0.8 0.1 0.1\n")
    options = (folder, "--labels", labels, "--method", "black")
    assert run(*options, "--label-classes", 1, "--label-classes", 2) == 0
    assert manifest(output)["a.png"]["boxes"] == [[6, 5, 12, 10], [90, 75, 12, 10]]
    note = f"{labels}: label classes hidden (boxes): 1 (1), 2 (1); not hidden: 0 (1)"
    assert note in capsys.readouterr().err.splitlines()
    assert "no class 'face'" in refusal(capsys, *options, "--label-classes", "face")
    for arguments in ([folder, "--label-classes", 1], [folder, "--boxes", "both"]):
        with pytest.raises(SystemExit):
            run(*arguments)


def test_labels_drawn_before_the_photo_was_turned_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned: 100 wide, 120 high
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "in" / "a.jpg", exif=exif)
    for size, code in (((120, 100), 1), ((100, 120), 0)):
        labels = coco_file(tmp_path / "label.json", {"a.jpg": ["5 105 40 14"]}, size)
        if code:  # as drawn on the stored pixels
            labels = coco_file(tmp_path / "label.json", {"a.jpg": ["5 60 40 14"]}, size)
        assert run(tmp_path / "in", "--labels", labels, "--method", "black") == code
        assert (tmp_path / "in_black" / "a.jpg").exists() == (code == 0)
        words = "a.jpg: the label file gives 120 x 100 pixels, the upright photo has 100 x 120"
        assert (words in capsys.readouterr().err) == bool(code)
    (tmp_path / "in" / "a.txt").write_text("0 0.25 0.95 0.4 0.1\n")
    assert run(tmp_path / "in", "--labels", tmp_path / "in", "--method", "black") == 0
    assert manifest(tmp_path / "in_black")["a.jpg"]["boxes"] == [[5, 108, 40, 12]]
    assert read_photo(tmp_path / "in_black" / "a.jpg").pixels[110:118, 8:42].mean() < 10


def test_names_in_label_files_lead_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    labels = make_folder(folder, {"a.png": ["1 2 30 40"]})
    write_photo(tmp_path / "b.png", picture(1))
    options = (folder, "--method", "black", "--labels")
    assert run(*options, labels) == 0
    capsys.readouterr()
    before = contents(tmp_path)
    hostile = tmp_path / "labels.json"
    for name in (
        "../b.png",
        str(tmp_path / "b.png"),
        "e/../../b.png",
        "C:\\b.png",
        "~/../../b.png",
    ):
        line = refusal(capsys, *options, coco_file(hostile, {"a.png": [], name: ["1 2 30 40"]}))
        assert line.startswith(f"dartblur.py: error: {hostile}: image 1: file_name ")
    for name in ("manifest.jsonl", "manifest.jsonl.part", "a.txt"):
        line = refusal(capsys, *options, coco_file(hostile, {"a.png": [], name: []}))
        assert line.endswith(
            f"{folder / name}: refused: a label names it, but it is not named as a photo"
        )
    hostile.unlink()
    assert contents(tmp_path) == before

    if not hasattr(Path, "symlink_to"):
        return
    (folder / "link").symlink_to(folder, target_is_directory=True)
    coco_file(hostile, {"a.png": ["1 2 30 40"], "link/a.png": [], "gone.png": []})
    assert run(*options, hostile) == 1
    assert files_below(output) == {"a.png", "manifest.jsonl"}
    errors = capsys.readouterr().err
    assert "link/a.png: the folder has it under another name or behind a link" in errors
    assert "gone.png: no such file" in errors


def test_both_hides_what_either_knows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    # One box on the wall; of the other photo the whole face, so that the find lies in it.
    labels = label_file(
        tmp_path / "label.txt",
        {"eileen_collins.jpg": ["5 5 40 50.5"], "grace_hopper.jpg": ["120 70 280 340"]},
    )
    options = ("--output", output, "--method", "black", "--score", "0.9", "--labels", labels)
    assert run(SAMPLES, *options, "--boxes", "both") == 0
    assert capsys.readouterr().out.startswith("2 photos written, 3 faces hidden")
    collins, hopper = (
        manifest(output)[f"{name}.jpg"] for name in ("eileen_collins", "grace_hopper")
    )
    assert collins["source"] == hopper["source"] == "both"
    assert collins["boxes"][0] == [5, 5, 40, 50.5]
    x, y, w, h = collins["boxes"][1]
    assert x < 192 < 257 < x + w  # eyes and mouth, by hand
    assert y < 80 < 170 < y + h
    assert collins["scores"][0] is None
    assert collins["scores"][1] > 0.9
    assert (hopper["boxes"], hopper["scores"]) == ([[120, 70, 280, 340]], [None])
    for name, entry in manifest(output).items():
        clean, hidden = (read_photo(root / name).pixels for root in (SAMPLES, output))
        rows = [" ".join(map(str, box)) for box in entry["boxes"]]
        expected = black(clean, boxes_of(rows))
        assert np.abs(hidden.astype(int) - expected).mean() < 2  # JPEG coding


def test_both_equals_labels_where_nothing_is_found_and_lists_no_photo_by_itself(
    tmp_path: Path, blind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_gaussian"
    listed = {name: rows for name, rows in LABELS.items() if name != "e 1/none.png"}
    make_folder(folder)
    labels = label_file(tmp_path / "label.txt", listed)
    options = (folder, "--labels", labels, "--method", "gaussian", "--detector", blind)
    assert run(*options) == 1
    before = contents(output)
    capsys.readouterr()
    assert run(*options, "--boxes", "both") == 1
    assert f"{folder / 'e 1/none.png'}: not in the label file" in capsys.readouterr().err
    after = contents(output)
    assert after.keys() == {*listed, "manifest.jsonl"}
    assert all(after[name] == before[name] for name in listed)
    assert manifest(output)["a.png"]["source"] == "both"
    assert manifest(output)["a.png"]["scores"] == [None, None]
