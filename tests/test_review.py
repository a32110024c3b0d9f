"""How near pictures are to each other, and `evaluate.py review`."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from models.review_evaluation import pair_values
from tests.conftest import TreeMaker
from tests.evaluation_tree import evaluation_tree, flat_generator, recorded, run
from tests.photo_folders import picture
from utils.blur import face_mask, gaussian_blur
from utils.image_files import jpeg_coded, read_photo
from utils.similarity import Similarity, similarity
from utils.widerface import read_labels


def ssim_at(one: np.ndarray, other: np.ndarray, x: int, y: int) -> float:
    """SSIM at one pixel by its definition: an 11 x 11 Gaussian window of sigma 1.5, C1 and C2."""
    total = {name: 0.0 for name in ("weight", "a", "b", "aa", "bb", "ab")}
    for dy in range(-5, 6):
        for dx in range(-5, 6):
            weight = math.exp(-(dx * dx + dy * dy) / (2 * 1.5**2))
            a, b = float(one[y + dy, x + dx]), float(other[y + dy, x + dx])
            for name, value in zip(total, (1, a, b, a * a, b * b, a * b), strict=True):
                total[name] += weight * value
    a, b, aa, bb, ab = (total[name] / total["weight"] for name in ("a", "b", "aa", "bb", "ab"))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    return luminance * (2 * (ab - a * b) + c2) / (aa - a * a + bb - b * b + c2)


def test_similarity_is_that_of_the_masked_pixels() -> None:
    one, other = picture(0, 60, 70), picture(1, 60, 70)
    other[:, :35] = one[:, :35] // 2 + 30  # one half alike, the other not
    mask = np.zeros((60, 70), dtype=bool)
    mask[20:28, 25:45] = mask[40:43, 50:52] = True
    found = similarity(one, other, mask)
    differences, structures = [], []
    for y, x in np.argwhere(mask).tolist():
        for channel in range(3):
            differences.append(abs(int(one[y, x, channel]) - int(other[y, x, channel])))
            structures.append(ssim_at(one[..., channel], other[..., channel], x, y))
    count = len(differences)
    assert found.l1 == pytest.approx(sum(differences) / count)
    smooth = [d - 0.5 if d >= 1 else d * d / 2 for d in differences]
    assert found.smooth_l1 == pytest.approx(sum(smooth) / count)
    mean_square = sum(d * d for d in differences) / count
    assert found.psnr == pytest.approx(20 * math.log10(255 / math.sqrt(mean_square)))
    assert found.ssim == pytest.approx(sum(structures) / count, rel=1e-6)
    # What lies far outside the mask does not count.
    other[58:, :10] = 0
    assert similarity(one, other, mask) == found


def test_equal_pictures() -> None:
    one = picture(0, 20, 20)
    mask = np.ones((20, 20), dtype=bool)
    found = similarity(one, one, mask)
    assert (found.l1, found.smooth_l1, found.psnr) == (0.0, 0.0, math.inf)
    assert found.ssim == pytest.approx(1.0)


def test_photos_count_alike_and_the_budget_is_within_it() -> None:
    photos = [Similarity(1.0, s, 30.0, 0.5) for s in (0.0, 10.0, 20.0, 20.001)]
    values = pair_values(photos, budget=20)
    assert values["smooth_l1"] == pytest.approx(50.001 / 4)
    assert values["within_budget"] == 0.75
    assert values["smooth_l1_p95"] == pytest.approx(20 + 0.85 * 0.001)  # 0.95 * 3 = 2.85


def test_review_of_a_generator_that_draws_black(
    make_tree: TreeMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its difference to any other picture is that picture's brightness in the boxes."""
    tree = evaluation_tree(make_tree, tmp_path / "data", train=0)
    black = flat_generator(tmp_path / "black.safetensors", -1)
    assert run("review", "--data", tree, "--output", tmp_path, "--generator", black) == 0
    expected: dict[str, list[float]] = {
        name: [] for name in ("gaussian", "coded blur", "clean", "change")
    }
    for photo in read_labels(tree / "val" / "label.txt"):
        pixels = read_photo(tree / "val" / "images" / photo.path).pixels
        mask = face_mask(photo.boxes, *pixels.shape[:2]) > 0
        blurred = gaussian_blur(pixels, photo.boxes)
        coded = jpeg_coded(blurred, 80)
        for name, version in (("gaussian", blurred), ("coded blur", coded), ("clean", pixels)):
            expected[name].append(float(version[mask].mean()))
        change = np.abs(pixels[mask].astype(float) - blurred[mask]).mean()
        expected["change"].append(float(change))
    values = recorded(tmp_path / "review")["results"]
    assert values["photos"] == 3
    pairs = values["pairs"]
    for name in ("gaussian", "coded blur", "clean"):
        pair = pairs[f"dartblur – {name}"]
        assert pair["l1"] == pytest.approx(np.mean(expected[name]))
        assert pair["smooth_l1"] == pytest.approx(pair["l1"] - 0.5, abs=0.05)
        assert pair["within_budget"] == 0.0
        assert pair["ssim"] < 0.5
    assert pairs["gaussian – clean"]["l1"] == pytest.approx(np.mean(expected["change"]))
    text = (tmp_path / "review" / "results.md").read_text(encoding="utf-8")
    assert f"| dartblur – clean | {np.mean(expected['clean']):.2f} | " in text
    assert "0.0% within budget" in capsys.readouterr().out


def test_faults_take_one_line(
    make_tree: TreeMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = evaluation_tree(make_tree, tmp_path / "data", train=0)
    black = flat_generator(tmp_path / "black.safetensors", -1)
    arguments = ["review", "--output", tmp_path, "--generator", black, "--data"]
    assert run(*arguments, tmp_path / "nowhere") == 1
    labels = tree / "val" / "label.txt"
    whole = labels.read_text()
    labels.write_text("# test/0.jpg\n")
    assert run(*arguments, tree) == 1
    labels.write_text(whole.replace("# test/1.jpg", "# test/none.jpg"))
    assert run(*arguments, tree) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "evaluate.py: " in line]
    assert len(lines) == 3
    for line, words in zip(
        lines, ("no labels for 'val'", "no labelled photo", "none.jpg"), strict=True
    ):
        assert words in line
    assert not (tmp_path / "review").exists()


def test_at_least_one_photo(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("review", "--photos", 0)
    assert caught.value.code == 2
    assert "1 or more" in capsys.readouterr().err
