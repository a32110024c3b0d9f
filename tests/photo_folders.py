"""Small folders of photos with labels, and dartblur.py run on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dartblur
from models.retinaface import RetinaFace
from models.weights import save_weights
from utils.blur import Pixels
from utils.image_files import write_photo

LABELS = {  # photos are 120 pixels wide and 100 high
    "a.png": ["10 20 30.5 40", "30 30 25 20"],
    "e 1/deep/b.png": ["-5 60 40 60"],
    "e 1/none.png": [],
    "e2/c.jpg": ["50 10 30 30"],
}


def picture(seed: int, height: int = 100, width: int = 120) -> Pixels:
    """Noise: no two regions of it are alike, and none is flat."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def label_file(path: Path, labels: dict[str, list[str]]) -> Path:
    lines = [line for name, rows in labels.items() for line in (f"# {name}", *rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def make_folder(folder: Path, labels: dict[str, list[str]] = LABELS) -> Path:
    """Write the photos of `labels` to `folder`, and the label file beside it."""
    for seed, name in enumerate(labels):
        write_photo(folder / name, picture(seed))
    return label_file(folder.with_name("label.txt"), labels)


def boxes_of(rows: list[str]) -> list[list[float]]:
    numbers = [[float(field) for field in row.split()] for row in rows]
    return [[x, y, x + w, y + h] for x, y, w, h in numbers]


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def manifest(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "manifest.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert len({entry["path"] for entry in entries}) == len(entries)
    return {entry["path"]: entry for entry in entries}


def run(*arguments: object, workers: int = 0) -> int:
    """Run dartblur.py in this process, which is quicker than to start workers."""
    return dartblur.main([*map(str, arguments), "--workers", str(workers)])


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run what must end before any photo is touched; returns its one line."""
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("dartblur.py: error: ")
    return line


def blind_detector(path: Path) -> Path:
    """Write the weights of a detector that finds no face in any photo."""
    detector = RetinaFace("mobilenet0.25")
    for head in detector.ClassHead:
        for parameter in head.parameters():
            torch.nn.init.zeros_(parameter)
            if parameter.ndim == 1:
                parameter.data[0::2] = 9.0  # the logits of background
    save_weights(detector, path)
    return path
