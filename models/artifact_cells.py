"""A cell of the artifact measurement: one detector, trained on one variant from one seed.

Its folder is a run directory of train.py with `cell.json` beside, which appears when the detector
is trained and tested. A cell that was stopped goes on from its last epoch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.detector_evaluation import curve_values, predict_photos
from models.retinaface import RetinaFace
from models.training_loop import run_training
from models.training_setup import build_training
from models.weights import build_retinaface
from utils.device import pick_device
from utils.provenance import provenance
from utils.results import write_json
from utils.run_dir import RunDirectory, RunError
from utils.wider_protocol import PhotoFaces, score_predictions

CURVE_POINTS = 5
"""Points of a learning curve, at most; the last is the trained detector."""

NEVER = 1_000_000_000


@dataclass(frozen=True)
class Cell:
    """What to train, and what to test it on.

    settings: of the training run, as `cell_settings` makes them.
    images_dir, ground_truth, longest_side: the clean test photos and how they are searched.
    """

    variant: str
    seed: int
    folder: Path
    settings: dict[str, Any]
    images_dir: Path
    ground_truth: Mapping[str, PhotoFaces]
    longest_side: int

    @property
    def label(self) -> str:
        """Name for people."""
        return f"{self.variant}, seed {self.seed}"


def cell_settings(
    photos: Path, labels: Path, backbone: Path | None, seed: int, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a detector's run, as train.py writes them, on the photos of one variant.

    `backbone`: weights that the backbone starts from; None starts from random numbers. A
    checkpoint is kept of every epoch, for the learning curve.
    """
    recipe = config["train_detector"]
    kept = {"checkpoint_every": NEVER, "keep_checkpoints": recipe["epochs"], "pictures_every": 0}
    return {
        "model": "detector",
        "images": "images",
        "seed": seed,
        "data": None,
        "blurred": None,
        "photos": str(photos.resolve()),
        "labels": str(labels.resolve()),
        "critic": None,
        "init": None,
        "backbone": None if backbone is None else str(backbone.resolve()),
        "config": {**config, "train_detector": {**recipe, **kept}},
    }


def curve_epochs(epochs: int) -> list[int]:
    """After which epochs a detector is tested: the last, and up to four more before it."""
    points = min(CURVE_POINTS, epochs)
    return [round(epochs * (point + 1) / points) for point in range(points)]


def read_cell(folder: Path) -> dict[str, Any] | None:
    """What a finished cell has left (see `run_cell`); None of one that is not finished."""
    file = folder / "cell.json"
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise RunError(f"{file}: broken; delete its folder to run the cell again") from None


def run_cell(cell: Cell, device_name: str, workers: int, quiet: bool) -> None:
    """Train and test one detector, from where it was left; write `cell.json`.

    `cell.json`: `variant`, `seed`, `photos` and `steps` of the training, `seconds` that its steps
    took, `points` of the learning curve (`epoch`, `step`, `ap` by difficulty), `curves` (see
    `models.detector_evaluation.curve_values`) of the trained detector, `provenance`. `quiet` hides
    the progress bars. Raises what `run_training` and `build_training` raise, or `RunError`.
    """
    with contextlib.ExitStack() as stack:
        if quiet:
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        _run_cell(cell, pick_device(device_name), workers)


def _run_cell(cell: Cell, device: torch.device, workers: int) -> None:
    print(f"{cell.label}: training", flush=True)
    run = _open_run(cell)
    setup = build_training(cell.settings, device, run.load())
    run_training(setup.training, setup.samples, setup.schedule, run, device, workers)
    batches = len(setup.samples) // setup.schedule.batch_size
    points = []
    for epoch in curve_epochs(cell.settings["config"]["train_detector"]["epochs"]):
        step = epoch * batches
        detector = _detector_at(run, step).to(device)
        found = predict_photos(
            detector, cell.images_dir, cell.ground_truth, longest_side=cell.longest_side
        )
        curves = score_predictions(found, cell.ground_truth)
        aps = {name: curve.ap for name, curve in curves.items()}
        points.append({"epoch": epoch, "step": step, "ap": aps})
        text = ", ".join(f"{name} {ap:.4f}" for name, ap in aps.items())
        print(f"{cell.label}: AP after {epoch} epochs: {text}", flush=True)
    log = (run.path / "stats.jsonl").read_text(encoding="utf-8").splitlines()
    write_json(
        cell.folder / "cell.json",
        {
            "variant": cell.variant,
            "seed": cell.seed,
            "photos": len(setup.samples),
            "steps": step,
            "seconds": round(sum(json.loads(line)["seconds"] for line in log), 1),
            "points": points,
            "curves": {name: curve_values(curve) for name, curve in curves.items()},
            "provenance": provenance(),
        },
    )
    # The last checkpoint stays, to be exported; the others have done their service.
    (run.path / "best.json").unlink(missing_ok=True)
    for file in run.path.glob("checkpoint-*.pt"):
        if file != _checkpoint(run, step):
            file.unlink()


def _open_run(cell: Cell) -> RunDirectory:
    if not (cell.folder / "config.yaml").exists():
        # What a kill at the start has left has no step in it.
        shutil.rmtree(cell.folder, ignore_errors=True)
        return RunDirectory.create(cell.folder, cell.settings)
    return RunDirectory.open(cell.folder)


def _checkpoint(run: RunDirectory, step: int) -> Path:
    return run.path / f"checkpoint-{step:08d}.pt"


def _detector_at(run: RunDirectory, step: int) -> RetinaFace:
    file = _checkpoint(run, step)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises whatever the broken bytes lead it to
        raise RunError(
            f"{file}: missing, broken or truncated; delete {run.path} to run the cell again"
        ) from None
    return build_retinaface(state["detector"], file)
