from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import dartblur
from models.anonymize import find_faces
from models.privacy_evaluation import add_arguments, load_variants, mean_errors, run
from models.privacy_photos import Face, as_written, cut_face, read_portrait, training_faces
from models.recognition import load_recogniser
from models.weights import DETECTOR, GENERATOR, load_retinaface
from utils.blur import black, gaussian_blur, mosaic
from utils.config import load_config
from utils.identification import embedding_distances
from utils.image_files import read_photo, write_photo
from utils.lfw import LfwError, read_people, split_people

CONFIG = load_config()
SAMPLES = Path(__file__).resolve().parents[1] / "img" / "samples"

needs_dlib = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("dlib", "face_recognition_models")),
    reason="dlib-bin or face_recognition_models is not installed (requirements-eval.txt)",
)


def people_tree(root: Path, photos: dict[str, int]) -> Path:
    for person, count in photos.items():
        for number in range(count):
            write_photo(root / person / f"{number}.jpg", np.zeros((4, 4, 3), dtype=np.uint8))
    return root


def test_people_with_too_few_photos_are_left_out(tmp_path: Path) -> None:
    people = read_people(people_tree(tmp_path, {"b": 4, "a": 5, "c": 3}), photos=4)
    assert list(people) == ["a", "b"]
    assert [path.name for path in people["a"]] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def test_too_few_people_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(LfwError, match="no such folder"):
        read_people(tmp_path / "absent")
    with pytest.raises(LfwError, match="1 people with 4"):
        read_people(people_tree(tmp_path, {"a": 4, "b": 1}))


def test_the_split_is_disjoint_complete_and_seeded() -> None:
    names = [f"person {number:02}" for number in range(20)]
    tested, others = split_people(names, 12, seed=0)
    assert (len(tested), len(others)) == (12, 8)
    assert sorted(tested + others) == names
    assert tested == sorted(tested)
    assert split_people(names, 12, seed=0) == (tested, others)
    assert split_people(names, 12, seed=1) != (tested, others)
    for wrong in (1, 20):
        with pytest.raises(LfwError, match="leave at least 1"):
            split_people(names, wrong, seed=0)


@pytest.mark.parametrize("side", [40.0, 130.0])
def test_a_cut_face_has_the_wanted_size_and_its_box_in_place(side: float) -> None:
    image = np.zeros((400, 300, 3), dtype=np.uint8)
    box = np.array([100.0, 200.0, 160.0, 280.0])
    image[200:280, 100:160] = 255
    face = cut_face(image, box, side)
    x1, y1, x2, y2 = face.boxes[0]
    assert y2 - y1 == pytest.approx(side, rel=0.02)
    assert x2 - x1 == pytest.approx(side * 60 / 80, rel=0.02)
    assert face.pixels.shape[0] == pytest.approx(1.6 * side, abs=2)
    rows, columns = np.nonzero(face.pixels[..., 0] > 127)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found, [x1, y1, x2, y2], atol=1)


def test_a_cut_face_ends_at_the_edge_of_the_photo() -> None:
    image = np.full((100, 80, 3), 90, dtype=np.uint8)
    face = cut_face(image, np.array([-10.0, 70.0, 30.0, 110.0]), 40)
    assert face.pixels.shape == (42, 42, 3)  # y from 58 to 100, x from 0 to 42
    np.testing.assert_allclose(face.boxes, [[-10, 12, 30, 52]])


def test_training_faces_are_the_large_ones_at_the_wanted_sizes(
    tmp_path: Path, make_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(tmp_path, photos=6, blurred=False)
    assert not list(training_faces(root, np.array([50.0]), 1.1, 99, np.random.default_rng(0)))
    monkeypatch.setattr("models.privacy_photos.SMALLEST", 30)
    sides = np.array([50.0, 90.0])
    faces = list(training_faces(root, sides, 1.1, 99, np.random.default_rng(0)))
    boxes = np.concatenate([face.boxes for face in faces])
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert {round(side, -1) for side in longer.tolist()} == {50, 90}
    shorter = (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
    assert (shorter / longer >= 30 / 48).all()
    few = list(training_faces(root, sides, 1.1, 2, np.random.default_rng(0)))
    assert len(few) == 2 < len(faces)


def test_variants_are_coded_as_dartblur_codes_its_copies(tmp_path: Path) -> None:
    source = SAMPLES / "grace_hopper.jpg"
    assert dartblur.main([str(source), "--output", str(tmp_path), "--method", "black"]) == 0
    copy = read_photo(tmp_path / source.name).pixels
    pixels = read_photo(source).pixels
    boxes, _ = find_faces(load_retinaface(DETECTOR).eval(), pixels, CONFIG)
    hidden = as_written(black(pixels, boxes), CONFIG["output"], tmp_path)
    np.testing.assert_array_equal(hidden, copy)


def test_the_variants_are_those_of_the_tool_and_a_stronger_blur() -> None:
    pixels = read_photo(SAMPLES / "grace_hopper.jpg").pixels
    boxes = np.array([[200.0, 100.0, 300.0, 220.0]])
    hidden = {
        name: anonymizer(pixels, boxes).pixels
        for name, anonymizer in load_variants(CONFIG, torch.device("cpu"), GENERATOR).items()
    }
    assert list(hidden) == ["gaussian", "gaussian, strong", "mosaic", "black", "dartblur"]
    np.testing.assert_array_equal(hidden["gaussian"], gaussian_blur(pixels, boxes, 0.5))
    np.testing.assert_array_equal(hidden["gaussian, strong"], gaussian_blur(pixels, boxes, 1.0))
    np.testing.assert_array_equal(hidden["mosaic"], mosaic(pixels, boxes))
    np.testing.assert_array_equal(hidden["black"], black(pixels, boxes))
    from_blur = np.abs(hidden["dartblur"].astype(float) - hidden["gaussian"])[100:220, 200:300]
    assert 1 < from_blur.mean() < 20


def test_errors_count_in_the_boxes_only() -> None:
    pixels = np.full((20, 20, 3), 100, dtype=np.uint8)
    face = Face(pixels, np.array([[5.0, 5.0, 15.0, 15.0], [0.0, 0.0, 4.0, 4.0]]))
    changed = pixels.copy()
    changed[:5] = 0
    changed[5:15, 5:10] += 10
    errors = mean_errors([changed], [face])
    assert errors["l1"] == pytest.approx(5)
    assert errors["psnr"] == pytest.approx(10 * np.log10(255**2 / 50))


@pytest.mark.parametrize("option", ["--test-people=1", "--faces=-1", "--steps=1", "--seed=-1"])
def test_numbers_out_of_range_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args([option])
    with pytest.raises(SystemExit):
        options.check(options)
    assert f"{option.split('=')[0]} must be" in capsys.readouterr().err


@needs_dlib
def test_a_face_that_the_detector_misses_is_hidden_by_dlibs_box() -> None:
    recogniser, detector = load_recogniser(), load_retinaface(DETECTOR).eval()
    path = SAMPLES / "grace_hopper.jpg"
    seen = read_portrait(path, recogniser, detector, CONFIG)
    blind = {**CONFIG, "detect": {**CONFIG["detect"], "score": 1.0}}
    missed = read_portrait(path, recogniser, detector, blind)
    assert (seen.box_from, seen.landmarks_from) == ("retinaface", "dlib")
    assert (missed.box_from, missed.landmarks_from) == ("dlib", "dlib")
    np.testing.assert_array_equal(seen.landmarks, missed.landmarks)
    for portrait in (seen, missed):
        box = portrait.boxes[0]
        assert ((portrait.landmarks > box[:2]) & (portrait.landmarks < box[2:])).all()
    theirs = recogniser.find(missed.pixels)[0]
    sides = missed.boxes[0, 2:] - missed.boxes[0, :2]
    factor = CONFIG["detect"]["enlarge"]
    np.testing.assert_allclose(sides, factor * (theirs[2:] - theirs[:2]))
    np.testing.assert_allclose(missed.boxes[0, :2] + missed.boxes[0, 2:], theirs[:2] + theirs[2:])


@needs_dlib
def test_the_whole_measurement_on_invented_photos(
    tmp_path: Path, make_tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each person is one noise picture, slightly changed from photo to photo. No detector finds a
    # face there, so the centre is hidden, with half of the picture in view.
    rng = np.random.default_rng(0)
    for person in range(3):
        coarse = rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)
        for photo in range(2):
            coarse[0] = photo
            pixels = np.asarray(cv2.resize(coarse, (100, 100), interpolation=cv2.INTER_CUBIC))
            write_photo(
                tmp_path / "lfw" / f"person {person}" / f"{photo}.jpg", pixels.astype(np.uint8)
            )
    monkeypatch.setattr("models.privacy_evaluation.PHOTOS", 2)
    monkeypatch.setattr("models.privacy_photos.SMALLEST", 30)
    monkeypatch.setattr("models.restoration.BATCH", 2)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = parser.parse_args(
        f"--lfw {tmp_path / 'lfw'} --test-people 2 --faces 2 --steps 2 --resamples 20".split()
    )
    options.data = make_tree(tmp_path / "wider", photos=3, blurred=False)
    options.device, options.output, options.name = "cpu", tmp_path / "results", "privacy"
    # Recognition takes most of the time, so two variants have to do.
    monkeypatch.setattr(
        "models.privacy_evaluation.load_variants",
        lambda *arguments: {
            name: anonymizer
            for name, anonymizer in load_variants(*arguments).items()
            if name in ("black", "dartblur")
        },
    )
    compared: list[tuple[np.ndarray, np.ndarray]] = []

    def recorded(probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        compared.append((probes, gallery))
        return embedding_distances(probes, gallery)

    monkeypatch.setattr("models.privacy_evaluation.embedding_distances", recorded)
    run(options)
    record = json.loads((tmp_path / "results" / "privacy" / "results.json").read_text("utf-8"))
    values = record["results"]

    variants = ["black", "dartblur"]
    attacks = ["naive", "same tool", "restored", "both restored"]
    wanted = [("clean", "naive"), *((one, attack) for one in variants for attack in attacks)]
    assert [(row["variant"], row["attack"]) for row in values["rows"]] == wanted
    assert values["rows"][0]["rank1"] == [1, 1, 1]
    clean = compared[0][0]
    for start in range(1, len(compared), 4):
        naive, same_tool, restored, both = compared[start : start + 4]
        for attack in (naive, restored):
            assert not np.array_equal(attack[0], clean)
            np.testing.assert_array_equal(attack[1], clean)
        for gallery in (*same_tool, naive[0]):
            np.testing.assert_array_equal(gallery, naive[0])
        for gallery in both:
            np.testing.assert_array_equal(gallery, restored[0])
        assert not np.array_equal(naive[0], restored[0])
    for row in values["rows"]:
        assert (row["people"], row["photos"], row["identifications"]) == (2, 4, 4)
        assert row["impostor_pairs"] == 4
        for key in ("rank1", "tar_at_far_0.01", "tar_at_far_0.001"):
            value, low, high = row[key]
            assert 0 <= low <= value <= high <= 1
    assert values["setup"]["landmarks_from"] == {"centre": 4}
    assert values["setup"]["training_faces_wider"] == 2
    assert [one["variant"] for one in values["restorations"]] == variants
    before = {one["variant"]: one["before"]["l1"] for one in values["restorations"]}
    assert before["dartblur"] < before["black"]

    lines = (tmp_path / "results" / "privacy" / "results.md").read_text("utf-8").splitlines()
    assert (
        lines[6]
        == "| clean | naive | as it is | clean | " + " | ".join(["100.0 (100.0–100.0)"] * 3) + " |"
    )
    assert sum(line.startswith("| dartblur |") for line in lines) == 5
