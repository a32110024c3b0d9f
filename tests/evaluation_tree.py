"""A drawn WIDER FACE tree with the official lists, generators of one colour, evaluate.py called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import evaluate
from models.generator import BlurGenerator
from models.weights import save_weights
from tests.official_lists import Listed, write_lists
from utils.boxes import usable, xyxy_to_xywh
from utils.widerface import read_labels

DIFFICULTIES = ("easy", "medium", "hard")


def evaluation_tree(make_tree: Callable[..., Path], root: Path, train: int = 8) -> Path:
    """`train` training and three validation photos; every set counts every usable face.

    The two splits share no event, so that none can be taken for the other.
    """
    if train:
        make_tree(root, train, "train", False)
    make_tree(root, 3, "val", False)
    (root / "val" / "images" / "event").rename(root / "val" / "images" / "test")
    labels = root / "val" / "label.txt"
    labels.write_text(labels.read_text(encoding="utf-8").replace("# event/", "# test/"))
    listed: Listed = {}
    for photo in read_labels(root / "val" / "label.txt"):
        rows = xyxy_to_xywh(photo.boxes[usable(photo.boxes)]).tolist()
        every = list(range(1, len(rows) + 1))
        listed[photo.path] = (rows, {name: every for name in DIFFICULTIES})
    write_lists(root / "ground_truth", listed)
    return root


def flat_generator(path: Path, colour: float) -> Path:
    """Weights of a generator that draws every face black (-1) or white (1)."""
    generator = BlurGenerator()
    for parameter in generator.parameters():
        torch.nn.init.zeros_(parameter)
    bias = generator.get_parameter("up0.module.3.bias")
    torch.nn.init.constant_(bias, 20 * colour)  # tanh(20) is 1
    save_weights(generator, path, torch.float16)
    return path


def run(*arguments: object) -> int:
    return evaluate.main([str(argument) for argument in arguments])


def recorded(folder: Path) -> dict[str, Any]:
    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    text = (folder / "results.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)
