"""Tries a training before it starts: data, memory, disk, and how long it will take."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from models.training_setup import Setup
from utils.face_dataset import DataError, Source, run_loader
from utils.processes import all_agree, process_count, process_rank
from utils.run_dir import RunError
from utils.sampling import BatchOrder, Pass


def dry_run(setup: Setup, path: Path, device: torch.device, workers: int, done: int = 0) -> str:
    """Check what the run at `path` needs and take steps of each kind; nothing is written.

    `done`: steps of the plan that lie behind. Returns the report, several lines. Raises
    `DataError` for a photo that is no picture, `RunError` where the disk is too small. The
    networks have been trained a little afterwards: build them anew for the run itself.
    """
    samples, schedule = setup.samples, setup.schedule
    check_pictures(samples.source)
    batches = len(samples) // schedule.batch_size
    plan = setup.training.plan(batches)
    left = steps_left(plan, done)
    seconds = {kind: _time_step(setup, kind, device, workers) for kind in left}

    checkpoint = _bytes_of(setup.training.state())
    needed = checkpoint * (schedule.keep_checkpoints + 2)  # the best, and the one being written
    existing = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    # A run that goes on overwrites what it has written.
    own = sum(file.stat().st_size for file in path.glob("checkpoint-*.pt"))
    free = shutil.disk_usage(existing).free + own
    if free < needed:
        raise RunError(
            f"{path}: checkpoints need {_size(needed)}, {_size(free)} are free; "
            f"lower keep_checkpoints or name another --run"
        )
    total = sum(seconds[kind] * count for kind, count in left.items())
    lines = [
        f"{len(samples)} photos, {batches} batches of {schedule.batch_size} an epoch, "
        f"{process_count()} process(es), {device}",
        *(f"{kind:>10}: {count:,} steps of {seconds[kind]:.2f} s" for kind, count in left.items()),
        f"checkpoints: up to {_size(needed)} of {_size(free)} that are free",
    ]
    if device.type == "cuda":
        lines.append(f"GPU memory: {_size(torch.cuda.max_memory_allocated(device))} in these steps")
    hours, minutes = divmod(round(total / 60), 60)
    lines.append(f"estimated time: {hours} h {minutes:02d} min")
    return "\n".join(lines)


def check_pictures(source: Source) -> None:
    """Raise `DataError` for a photo or blurred copy whose beginning is no picture's."""
    for folder in filter(None, (source.images_dir, source.blurred_dir)):
        for photo in source.photos:
            try:
                with Image.open(folder / photo.path):
                    pass
            except (UnidentifiedImageError, OSError):
                raise DataError(
                    f"{folder / photo.path}: not a picture; fetch it or make it again"
                ) from None


def steps_left(plan: list[Pass], done: int) -> dict[str, int]:
    """How many steps of each kind follow after the first `done`."""
    left: dict[str, int] = {}
    for current in plan:
        skipped = min(done, current.batches)
        done -= skipped
        if current.batches > skipped:
            left[current.kind] = left.get(current.kind, 0) + current.batches - skipped
    return left


def _time_step(setup: Setup, kind: str, device: torch.device, workers: int) -> float:
    """Seconds of a step, data included, once everything is warm."""
    # As many batches as the loader fetches ahead, and one that it must be waited for.
    count = min(2 + 2 * workers, len(setup.samples) // setup.schedule.batch_size)
    current = Pass(kind, 0, 0, count)
    order = BatchOrder(
        [current],
        len(setup.samples),
        setup.schedule.batch_size,
        setup.samples.seed,
        0,
        process_rank(),
        process_count(),
    )
    started, steps = time.perf_counter(), 0
    for number, batch in enumerate(run_loader(setup.samples, order, workers, False)):
        if all_agree(batch is not None):
            setup.training.step(current, batch.to(device))
            steps += 1
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if number == 0 and count > 1:
            started, steps = time.perf_counter(), 0
    if not steps:
        raise DataError("no face is left in the batches tried; raise placements or the batch size")
    return (time.perf_counter() - started) / steps


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _bytes_of(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(_bytes_of, state.values()))
    return sum(map(_bytes_of, state)) if isinstance(state, list | tuple) else 0
