import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image, ImageCms

import utils.hiding
from models.anonymize import find_faces
from models.generator import BlurGenerator
from models.retinaface import RetinaFace
from models.weights import save_weights
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
    run,
)
from utils.blur import Pixels, black, face_mask, gaussian_blur, mosaic
from utils.boxes import pixel_boxes, xyxy_to_xywh
from utils.config import load_config
from utils.image_files import jpeg_coded, read_photo, write_photo

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator as it is before training."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "generator.safetensors"
    save_weights(BlurGenerator(), path, torch.float16)
    return path


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blind_detector(tmp_path_factory.mktemp("weights") / "blind.safetensors")


def spoiled(path: Path, spoil: Callable[[torch.Tensor], object]) -> Path:
    """Change the tensors of a weight file, past the checks of `save_weights`."""
    state = safetensors.torch.load_file(path)
    for value in state.values():
        if value.is_floating_point():
            spoil(value)
    changed = path.with_name("spoiled.safetensors")
    safetensors.torch.save_file(state, changed)
    return changed


def test_the_tree_is_mirrored_and_only_faces_change(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    labels = make_folder(folder)
    before = contents(folder)
    assert run(folder, "--labels", labels, "--weights", weights) == 0
    output = tmp_path / "in_dartblur"
    assert contents(folder) == before
    assert files_below(output) == {*LABELS, "manifest.jsonl"}
    for name, rows in LABELS.items():
        if name.endswith(".png"):
            clean, hidden = (read_photo(root / name).pixels for root in (folder, output))
            outside = face_mask(boxes_of(rows), 100, 120) == 0
            np.testing.assert_array_equal(hidden[outside], clean[outside])
            for x1, y1, x2, y2 in pixel_boxes(boxes_of(rows), 100, 120):
                assert (hidden[y1:y2, x1:x2] != clean[y1:y2, x1:x2]).any(axis=2).mean() > 0.9
    captured = capsys.readouterr()
    assert captured.out.startswith(
        "4 photos written (1 without a face), 4 faces hidden, 0 failures, 0 skipped, "
    )
    assert captured.out.endswith(" photos/s\n")
    assert "photos/s" in captured.err  # the progress bar
    entries = manifest(output)
    assert entries.keys() == LABELS.keys()
    state = (folder / "a.png").stat()
    made_by = entries["a.png"].pop("made_by")
    assert made_by.keys() == {"recipe", "method", "blur", "output", "generator", "labels"}
    assert entries["a.png"] == {
        "path": "a.png",
        "status": "done",
        "method": "dartblur",
        "output": "a.png",
        "source": "labels",
        "faces": 2,
        "boxes": [[10.0, 20.0, 30.5, 40.0], [30.0, 30.0, 25.0, 20.0]],
        "scores": None,
        "flags": [],
        "error": None,
        "source_size": state.st_size,
        "source_mtime_ns": state.st_mtime_ns,
        "output_size": (output / "a.png").stat().st_size,
    }


def test_a_face_holds_what_the_generator_makes_of_the_coded_blur(
    tmp_path: Path, weights: Path
) -> None:
    labels = make_folder(tmp_path / "in")
    # With all weights zero the U-Net's output is tanh of its input image.
    zero = spoiled(weights, lambda value: value.zero_())
    assert run(tmp_path / "in", "--labels", labels, "--weights", zero) == 0
    for name in ("a.png", "e 1/deep/b.png"):
        clean = read_photo(tmp_path / "in" / name).pixels
        boxes = boxes_of(LABELS[name])
        coded = jpeg_coded(gaussian_blur(clean, boxes), 80).astype(np.float64)
        redrawn = (np.tanh(coded / 127.5 - 1) + 1) * 127.5
        inside = face_mask(boxes, 100, 120)[..., None] > 0
        found = read_photo(tmp_path / "in_dartblur" / name).pixels
        assert np.abs(found - np.where(inside, redrawn, clean)).max() <= 0.5001


@pytest.mark.parametrize(
    ("method", "hide"), [("gaussian", gaussian_blur), ("mosaic", mosaic), ("black", black)]
)
def test_other_methods(
    tmp_path: Path, method: str, hide: Callable[[Pixels, list[list[float]]], Pixels]
) -> None:
    labels = make_folder(tmp_path / "in")
    no_weights = tmp_path / "none.safetensors"
    options = ("--labels", labels, "--method", method, "--weights", no_weights)
    assert run(tmp_path / "in", *options) == 0
    for name in ("a.png", "e 1/deep/b.png", "e 1/none.png"):
        clean = read_photo(tmp_path / "in" / name).pixels
        hidden = read_photo(tmp_path / f"in_{method}" / name).pixels
        np.testing.assert_array_equal(hidden, hide(clean, boxes_of(LABELS[name])))
        assert manifest(tmp_path / f"in_{method}")[name]["method"] == method


def test_official_labels_say_the_same(tmp_path: Path) -> None:
    labels = make_folder(tmp_path / "in")
    official = tmp_path / "official.txt"
    with official.open("w") as file:
        for name, rows in LABELS.items():
            lines = [f"{row} 0 0 0 1 0 0" for row in rows] or [" ".join("0" * 10)]
            print(name, len(rows), *lines, sep="\n", file=file)
    for name, file_ in (("one", labels), ("two", official)):
        options = ("--labels", file_, "--output", tmp_path / name, "--method", "black")
        assert run(tmp_path / "in", *options) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_photos_and_labels_must_match(
    tmp_path: Path, blind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    make_folder(folder)
    labels = label_file(
        tmp_path / "label.txt", {"a.png": LABELS["a.png"], "e2/gone.png": [], "e 1/none.png": []}
    )
    options = (folder, "--labels", labels, "--method", "black")
    assert run(*options) == 1
    assert files_below(output) == {"a.png", "e 1/none.png", "manifest.jsonl"}
    captured = capsys.readouterr()
    assert "2 photos written (1 without a face), 2 faces hidden, 3 failures" in captured.out
    for name, reason in {
        "e 1/deep/b.png": "not in the label file",
        "e2/c.jpg": "not in the label file",
        "e2/gone.png": "no such file",
    }.items():
        assert f"failed, no output: {folder / name}: {reason}" in captured.err
        entry = manifest(output)[name]
        assert (entry["status"], entry["output"]) == ("failed", None)
        assert reason in entry["error"]

    assert run(*options, "--boxes", "detect-missing", "--detector", blind) == 1
    assert files_below(output) == {*LABELS, "manifest.jsonl"}
    entries = manifest(output)
    assert [entries[name]["source"] for name in ("a.png", "e2/c.jpg")] == ["labels", "detector"]
    assert (entries["a.png"]["scores"], entries["e2/c.jpg"]["scores"]) == (None, [])
    assert entries["e2/gone.png"]["status"] == "failed"


def test_a_photo_that_fails_keeps_no_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    labels = make_folder(folder)
    options = (folder, "--labels", labels, "--method", "black")
    assert run(*options) == 0
    whole = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(whole[: len(whole) // 2])
    label_file(labels, {**LABELS, "e2/c.jpg": ["120 10 30 30"]})
    capsys.readouterr()
    assert run(*options) == 1
    assert files_below(output) == {"e 1/deep/b.png", "e 1/none.png", "manifest.jsonl"}
    captured = capsys.readouterr()
    assert "0 photos written, 0 faces hidden, 2 failures, 2 done before" in captured.out
    assert "settings changed since the last run (labels): 1 photos are done anew" in captured.err
    failures = [line for line in captured.err.splitlines() if line.startswith("failed")]
    assert failures[0].startswith(f"failed, no output: {folder / 'a.png'}: ")
    assert "the face box 120 10 30 30 (x y w h) lies outside this photo of 120 x 100" in failures[1]
    assert {name: entry["status"] for name, entry in manifest(output).items()} == {
        "a.png": "failed",
        "e 1/deep/b.png": "done",
        "e 1/none.png": "done",
        "e2/c.jpg": "failed",
    }


def test_networks_that_return_nan_let_no_face_through(
    tmp_path: Path, weights: Path, blind: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def nan(value: torch.Tensor) -> None:
        value.fill_(torch.nan)

    folder = tmp_path / "in"
    labels = make_folder(folder, {"a.png": ["10 20 30 40"], "b.png": ["1 2 30 40"]})
    assert run(folder, "--labels", labels, "--weights", spoiled(weights, nan)) == 1
    assert files_below(tmp_path / "in_dartblur") == {"manifest.jsonl"}
    assert "a.png: the generator returned values that are not finite" in capsys.readouterr().err
    assert run(folder, "--method", "black", "--detector", spoiled(blind, nan)) == 1
    assert files_below(tmp_path / "in_black") == {"manifest.jsonl"}
    assert "b.png: the detector returned values that are not finite" in capsys.readouterr().err


def test_whatever_goes_wrong_with_a_photo_the_others_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(image: Pixels, boxes: list[list[float]]) -> Pixels:
        raise RuntimeError("out of\nmemory")

    labels = make_folder(tmp_path / "in")
    monkeypatch.setattr(utils.hiding, "mosaic", failing)
    assert run(tmp_path / "in", "--labels", labels, "--method", "mosaic") == 1
    assert files_below(tmp_path / "in_mosaic") == {"manifest.jsonl"}
    assert "a.png: RuntimeError: out of memory" in capsys.readouterr().err


def test_copies_are_upright_and_keep_the_profile_alone(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the photo is to be shown turned: 100 wide, 120 high
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "in" / "a.jpg", exif=exif, icc_profile=profile)
    labels = label_file(tmp_path / "label.txt", {"a.jpg": ["5 105 40 14"]})
    options = ("--labels", labels, "--method", "black", "--jpeg-quality", 88)
    assert run(tmp_path / "in", *options) == 0
    copy = tmp_path / "in_black" / "a.jpg"
    with Image.open(copy) as image:
        assert image.size == (100, 120)
        assert not image.getexif()
        assert image.info["icc_profile"] == profile
        tables = image.quantization
    Image.fromarray(picture(0)).save(tmp_path / "b.jpg", quality=88)
    with Image.open(tmp_path / "b.jpg") as image:
        assert tables == image.quantization
    assert read_photo(copy).pixels[106:118, 6:44].mean() < 10


def test_without_path_both_splits_of_wider_face(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data" / "widerface"
    make_folder(data / "val" / "images")
    write_photo(data / "train" / "images" / "e1" / "a.jpg", picture(0))
    (data / "wider_face_split").mkdir()
    official = "e1/a.jpg\n1\n10 20 30 40 0 0 0 0 0 0\n"
    (data / "wider_face_split" / "wider_face_train_bbx_gt.txt").write_text(official)
    monkeypatch.chdir(tmp_path)
    assert run("--weights", weights) == 0
    assert files_below(data / "train" / "images_dartblur") == {"e1/a.jpg", "manifest.jsonl"}
    assert files_below(data / "val" / "images_dartblur") == {*LABELS, "manifest.jsonl"}
    assert manifest(data / "val" / "images_dartblur")["a.png"]["faces"] == 2
    assert run("--data", data, "--output", tmp_path / "out", "--method", "gaussian") == 0
    assert files_below(tmp_path / "out" / "train" / "images_gaussian") == {
        "e1/a.jpg",
        "manifest.jsonl",
    }
    assert (tmp_path / "out" / "val" / "images_gaussian" / "e 1" / "deep" / "b.png").is_file()


def test_as_a_program(tmp_path: Path) -> None:
    labels = make_folder(tmp_path / "in", {"a.png": ["1 2 30 40"], "b.png": []})
    (tmp_path / "in" / "b.png").write_bytes(b"no picture")
    command = [sys.executable, str(ROOT / "dartblur.py"), "in", "--labels", str(labels)]
    done = subprocess.run(
        [*command, "--method", "black"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("1 photos written, 1 faces hidden, 1 failures, 0 skipped")
    assert "in/b.png: not a picture" in done.stderr.replace("\\", "/")
    assert "Traceback" not in done.stderr
    assert files_below(tmp_path / "in_black") == {"a.png", "manifest.jsonl"}


def test_the_detector_finds_the_faces_of_the_samples(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, output = ROOT / "img" / "samples", tmp_path / "out"
    assert run(samples, "--output", output, "--weights", weights) == 0
    assert capsys.readouterr().out.startswith("2 photos written, ")
    # Around eyes and mouth, by hand, as x y w h.
    for name, core in {
        "eileen_collins.jpg": (192, 80, 65, 90),
        "grace_hopper.jpg": (200, 160, 120, 150),
    }.items():
        entry = manifest(output)[name]
        assert entry["source"] == "detector"
        assert entry["scores"][0] > 0.9
        x, y, w, h = entry["boxes"][0]  # the surest; a low score may add what is no face
        assert max(x - core[0], y - core[1]) < 0
        assert min(x + w - core[0] - core[2], y + h - core[1] - core[3]) > 0
        assert max(w, h) < 300
        clean, hidden = (read_photo(root / name).pixels for root in (samples, output))
        assert np.abs(hidden.astype(int) - clean)[:, : int(x) - 8].max() < 32  # JPEG coding alone
    assert run(samples, "--output", output, "--method", "black", "--score", "1") == 0
    assert manifest(output)["grace_hopper.jpg"]["faces"] == 0


def test_a_detector_with_resnet_needs_no_other_option(tmp_path: Path, weights: Path) -> None:
    detector = RetinaFace("resnet50")
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():  # gives it statistics, and so probabilities between 0 and 1
        detector(torch.rand(2, 3, 128, 128) * 255)
    path = tmp_path / "resnet50.safetensors"
    save_weights(detector, path)
    folder, names = tmp_path / "in", ("a.png", "b.png")
    make_folder(folder, {name: [] for name in names})
    assert run(folder, "--weights", weights, "--detector", path, "--score", "0.6") == 0
    path.unlink()  # 100 MB
    config = load_config(overrides=["detect.score=0.6"])
    for name in names:
        boxes, scores = find_faces(detector.eval(), read_photo(folder / name).pixels, config)
        entry = manifest(tmp_path / "in_dartblur")[name]
        assert entry["source"] == "detector"
        assert entry["faces"] > 0
        np.testing.assert_allclose(entry["boxes"], xyxy_to_xywh(boxes), atol=0.01)
        np.testing.assert_allclose(entry["scores"], scores, atol=1e-3)
