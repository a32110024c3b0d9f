"""A cell of the artifact measurement: one detector, trained on one variant from one seed.

Its folder is a run directory of train.py with `cell.json` beside, which appears when the detector
is trained and tested. A cell that was stopped goes on from its last epoch.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.detector_evaluation import curve_values, predict_photos
from models.retinaface import RetinaFace
from models.training_loop import run_training
from models.training_setup import build_training, photo_run_settings
from models.weights import build_retinaface
from utils.device import pick_device
from utils.jobs import run_jobs
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
    curve_points: of the learning curve, at most.
    """

    variant: str
    seed: int
    folder: Path
    settings: dict[str, Any]
    images_dir: Path
    ground_truth: Mapping[str, PhotoFaces]
    longest_side: int
    curve_points: int = CURVE_POINTS

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
    config = {**config, "train_detector": {**recipe, **kept}}
    return photo_run_settings("detector", photos, labels, seed, config, backbone=backbone)


def curve_epochs(epochs: int, points: int = CURVE_POINTS) -> list[int]:
    """After which epochs a detector is tested: the last, and up to `points` - 1 before it."""
    points = min(points, epochs)
    return [round(epochs * (point + 1) / points) for point in range(points)]


def read_cell(folder: Path, name: str = "cell.json") -> dict[str, Any] | None:
    """What a finished cell has left (see `run_cell`); None of one that is not finished."""
    file = folder / name
    if not file.exists():
        return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise RunError(f"{file}: broken; delete its folder to run the cell again") from None


def run_unfinished(
    function: Callable[..., None],
    cells: Sequence[Any],
    device_name: str,
    workers: int,
    at_once: int,
    name: str = "cell.json",
) -> None:
    """Call `function(cell, device_name, workers, quiet)` for cells whose folder lacks file `name`.

    `at_once` of them side by side; without progress bars where that is more than one.
    """
    unfinished = [cell for cell in cells if read_cell(cell.folder, name) is None]
    jobs = [(cell, device_name, workers, at_once > 1) for cell in unfinished]
    run_jobs(function, jobs, at_once)


def run_cell(cell: Cell, device_name: str, workers: int, quiet: bool) -> None:
    """Train and test one detector, from where it was left; write `cell.json`.

    `cell.json`: `variant`, `seed`, `photos` and `steps` of the training, `seconds` that its steps
    took, `points` of the learning curve (`epoch`, `step`, `ap` by difficulty), `curves` (see
    `models.detector_evaluation.curve_values`) of the trained detector, `provenance`. `quiet` hides
    the progress bars. Raises what `run_training` and `build_training` raise, or `RunError`.
    """
    with without_bars(quiet):
        _run_cell(cell, pick_device(device_name), workers)


@contextlib.contextmanager
def without_bars(quiet: bool = True) -> Iterator[None]:
    """Hide the progress bars of what runs inside, if `quiet`."""
    with contextlib.ExitStack() as stack:
        if quiet:
            nowhere = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _run_cell(cell: Cell, device: torch.device, workers: int) -> None:
    print(f"{cell.label}: training", flush=True)
    run = open_run(cell.folder, cell.settings)
    setup = build_training(cell.settings, device, run.load())
    run_training(setup.training, setup.samples, setup.schedule, run, device, workers)
    batches = len(setup.samples) // setup.schedule.batch_size
    points = []
    epochs = cell.settings["config"]["train_detector"]["epochs"]
    for epoch in curve_epochs(epochs, cell.curve_points):
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
    write_json(
        cell.folder / "cell.json",
        {
            "variant": cell.variant,
            "seed": cell.seed,
            "photos": len(setup.samples),
            "steps": step,
            "seconds": round(sum(line["seconds"] for line in read_log(run)), 1),
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


def open_run(folder: Path, settings: dict[str, Any]) -> RunDirectory:
    """Open the run that was begun in `folder`, or begin it."""
    if not (folder / "config.yaml").exists():
        # What a kill at the start has left has no step in it.
        shutil.rmtree(folder, ignore_errors=True)
        return RunDirectory.create(folder, settings)
    return RunDirectory.open(folder)


def read_log(run: RunDirectory) -> list[dict[str, Any]]:
    """The lines of a run's `stats.jsonl`, a step each."""
    lines = (run.path / "stats.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


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
