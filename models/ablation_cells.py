"""The generators of the ablation: one for each part of the recipe that is left out.

The folder of one is a run directory of train.py with `weights.safetensors`, which dartblur.py
reads, and `generator.json` beside, which appears last. One that was stopped goes on from its newest
checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.anonymize import load_anonymizer
from models.artifact_cells import open_run, read_log, without_bars
from models.generator import BlurGenerator
from models.objectives import OBJECTIVES
from models.review_evaluation import GIVEN, PAIRS, ReviewError, compared, pair_values
from models.training_loop import TrainingError, run_training
from models.training_setup import build_training, photo_run_settings
from models.weights import save_weights
from utils.device import pick_device
from utils.face_dataset import validation_source
from utils.provenance import file_digest, provenance
from utils.results import write_json
from utils.sampling import spaced

FULL = "full"
"""The recipe with all of its parts."""

REMOVALS = {
    "rev": "train_generator.loss_weights.rev=0",
    "proc": "train_generator.loss_weights.proc=0",
    "post": "train_generator.loss_weights.post=0",
    "cycl": "train_generator.loss_weights.cycl=0",
    "second-order": "train_generator.second_order=false",
    "adversary": "train_generator.train_adversary=false",
}
"""The parts of the recipe, with the override of config.yaml that leaves each out."""

LAST_STEPS = 25
"""Generator steps at the end of a training whose losses are averaged."""


@dataclass(frozen=True)
class GeneratorCell:
    """What to train: the recipe without one part, or all of it, from one seed."""

    row: str
    seed: int
    folder: Path
    settings: dict[str, Any]

    @property
    def label(self) -> str:
        """Name for people."""
        return f"generator {self.row}, seed {self.seed}"

    @property
    def weights(self) -> Path:
        """The file of the trained generator."""
        return self.folder / "weights.safetensors"


def row_of(part: str) -> str:
    """Name of the recipe without this part."""
    return f"without-{part}"


def generator_settings(
    photos: Path, labels: Path, critic: Path, init: Path, seed: int, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a generator's run, as train.py writes them; one checkpoint is kept."""
    kept = {"keep_checkpoints": 1, "pictures_every": 0}
    config = {**config, "train_generator": {**config["train_generator"], **kept}}
    return photo_run_settings("generator", photos, labels, seed, config, critic=critic, init=init)


def run_generator(cell: GeneratorCell, device_name: str, workers: int, quiet: bool) -> None:
    """Train one generator, from where it was left; write its weights and `generator.json`.

    `generator.json`: `photos` of the training, `steps` by kind, `seconds` that they took, `losses`
    (see `last_losses`), `rev_steps`: generator steps on which L_rev was above 0 (None without
    L_rev), `provenance`. `quiet` hides the progress bars. Raises what `run_training` and
    `build_training` raise.
    """
    print(f"{cell.label}: training", flush=True)
    device = pick_device(device_name)
    with without_bars(quiet):
        run = open_run(cell.folder, cell.settings)
        setup = build_training(cell.settings, device, run.load())
        run_training(setup.training, setup.samples, setup.schedule, run, device, workers)
    generator = BlurGenerator()
    generator.load_state_dict(setup.training.state()["generator"])
    log = read_log(run)
    steps = [line for line in log if "loss" in line]
    if not steps:
        raise TrainingError(f"{cell.folder}: no generator step found a face to learn from")
    kinds = [line["kind"] for line in log]
    save_weights(generator, cell.weights, torch.float16)
    write_json(
        cell.folder / "generator.json",
        {
            "photos": len(setup.samples),
            "steps": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
            "seconds": round(sum(line["seconds"] for line in log), 1),
            "losses": last_losses(steps),
            "rev_steps": sum(line["rev"] > 0 for line in steps) if "rev" in steps[0] else None,
            "provenance": provenance(),
        },
    )
    # The weights are there; a checkpoint holds six times as much, and has done its service.
    (run.path / "best.json").unlink(missing_ok=True)
    for file in run.path.glob("checkpoint-*.pt"):
        file.unlink()


def last_losses(steps: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean of each objective over the last `LAST_STEPS` lines of a log; None of one left out."""
    last = steps[-LAST_STEPS:]
    return {
        name: math.fsum(line[name] for line in last) / len(last) if name in last[0] else None
        for name in OBJECTIVES
    }


@dataclass(frozen=True)
class ReviewCell:
    """A generator, and how many of the labelled validation photos of `data` it is to redraw."""

    folder: Path
    weights: Path
    data: Path
    most: int | None
    config: Mapping[str, Any]


def run_review(cell: ReviewCell, device_name: str, _workers: int, quiet: bool) -> None:
    """Measure how far a generator's faces are from the blur it is given; write `review.json`.

    `review.json`: the number of `photos` with a face, and what
    `models.review_evaluation.pair_values` returns. Raises `ReviewError` and what reading photos,
    labels and weights raises.
    """
    print(f"{cell.folder.name}: distance to the blur", flush=True)
    device = pick_device(device_name)
    methods = {
        name: load_anonymizer(name, cell.config, device, cell.weights, detector=None)
        for name in ("gaussian", "dartblur")
    }
    source = validation_source(cell.data)
    photos, pairs = spaced(source.photos, cell.most), {GIVEN: PAIRS[GIVEN]}
    with without_bars(quiet):
        rows = [row[GIVEN] for row in compared(source, photos, methods, cell.config, pairs)]
    if not rows:
        raise ReviewError(f"{source.images_dir}: no labelled photo has a face")
    values = pair_values(rows, cell.config["train_generator"]["review_budget"])
    write_json(cell.folder / "review.json", {"photos": len(rows), **values})


def first_of_each(cells: Sequence[GeneratorCell]) -> dict[tuple[str, int], str]:
    """By row and seed, the first row of that seed whose weight file holds the same bytes."""
    first: dict[tuple[str, int], str] = {}
    return {
        (cell.row, cell.seed): first.setdefault((file_digest(cell.weights), cell.seed), cell.row)
        for cell in cells
    }
