"""Fixtures that several test files share."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import train
from models.retinaface import RetinaFace
from models.weights import save_weights
from tests.training_runs import Place, started
from utils.blur import Pixels, gaussian_blur
from utils.image_files import read_photo, write_photo

ROOT = Path(__file__).resolve().parents[1]

TreeMaker = Callable[..., Path]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Start every test from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the research data; its tests are skipped where it is absent."""
    folder = ROOT.parent / "shared"
    if not (folder / "widerface").is_dir() or not (folder / "weights").is_dir():
        pytest.skip(f"the research data (widerface/, weights/) is not in {folder}")
    return folder


@pytest.fixture(scope="session")
def make_tree() -> TreeMaker:
    """Draw one split of a WIDER FACE tree: pictures of 120 x 100 px with one to three "faces".

    `blurred` also writes the copies that gaussblur.py would write beside them.
    """

    def make(root: Path, photos: int = 5, split: str = "train", blurred: bool = True) -> Path:
        rng = np.random.default_rng(0)
        lines = []
        for number in range(photos):
            coarse = rng.integers(0, 120, (25, 30, 3), dtype=np.uint8)
            pixels: Pixels = coarse.repeat(4, axis=0).repeat(4, axis=1)
            name = f"event/{number}.jpg"
            lines.append(f"# {name}")
            boxes = []
            for _ in range(1 + number % 3):
                w, h = rng.integers(24, 48, 2).tolist()
                x, y = int(rng.integers(0, 120 - w)), int(rng.integers(0, 100 - h))
                pixels[y : y + h, x : x + w] = 120 + rng.integers(0, 120, (h, w, 3))
                boxes.append((x, y, x + w, y + h))
                lines.append(f"{x} {y} {w} {h}")
            lines.append("3 3 1 1")  # a face of no size, as WIDER FACE has them
            photo = root / split / "images" / name
            write_photo(photo, pixels)
            if blurred:
                write_photo(
                    root / split / "images_G2_M80" / name,
                    gaussian_blur(read_photo(photo).pixels, boxes),
                    jpeg_quality=80,
                    subsampling="4:2:0",
                )
        (root / split / "label.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return root

    return make


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, make_tree: TreeMaker) -> Place:
    """Eight photos, four batches an epoch; a critic that has not learnt a thing."""
    folder = tmp_path_factory.mktemp("train")
    torch.manual_seed(0)
    critic = RetinaFace()
    norms = [m for m in critic.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:  # without statistics it would let hardly any gradient through
        norm.momentum = 1.0
    with torch.no_grad():
        critic(torch.rand(4, 3, 64, 64) * 255)
    save_weights(critic, folder / "critic.safetensors")
    return Place(folder, make_tree(folder / "data", photos=8), folder / "critic.safetensors")


@pytest.fixture(scope="session")
def finished(place: Place) -> Iterator[Path]:
    """A generator's run from start to end, as a user starts it."""
    run = place.folder / "finished"
    process = started(*place.generator(run))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Traceback" not in output + errors
    yield run
    shutil.rmtree(run)


@pytest.fixture
def run_path(tmp_path: Path) -> Iterator[Path]:
    """A run directory to be; removed at once, for a checkpoint has 150 MB."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Call train.py in this process with the arguments given; returns its exit code."""

    def call(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        return train.main()

    return call
