"""The loop of every training: batches in, steps, log, pictures, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from utils.face_dataset import DetectorSamples, GeneratorSamples, run_loader
from utils.processes import (
    all_agree,
    mean_over_processes,
    process_count,
    process_rank,
    require_same,
)
from utils.provenance import provenance
from utils.run_dir import RunDirectory
from utils.sampling import BatchOrder, Pass


class TrainingError(Exception):
    """A run that cannot go on; the message is one line that says where it stood."""


class Training(Protocol):
    """What the loop drives: networks with their optimizers, and how they take a step."""

    def plan(self, batches: int) -> list[Pass]:
        """The whole run in order, for `batches` batches an epoch."""

    def rewarm_plan(self, batches: int, epoch: int) -> list[Pass]:
        """Passes of `still` steps that fill the moments a light checkpoint of `epoch` lacks."""

    def step(self, current: Pass, batch: Any, still: bool = False) -> dict[str, Tensor]:
        """Take a step on a batch that is on the device; scalars with the losses before it.

        "loss" is what the best checkpoint is chosen by, where the step has it. `still`: the
        optimizers gather their moments, and nothing else changes.
        """

    def pictures(self, batch: Any) -> Tensor:
        """A picture of where the training stands: uint8 [3, H, W]."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state`; without optimizers, their moments stay empty."""


@dataclass(frozen=True)
class Schedule:
    """How often the loop writes; `pictures_every` 0 for never."""

    batch_size: int
    checkpoint_every: int
    keep_checkpoints: int
    pictures_every: int

    @classmethod
    def of(cls, recipe: dict[str, Any]) -> Schedule:
        """Take the numbers out of a section of the recipe."""
        return cls(**{name: recipe[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Reading:
    """A step's losses on their way to the host: reading them at once would stall the GPU."""

    values: dict[str, Any]
    names: list[str]
    losses: list[str]
    host: Tensor | None
    ready: torch.cuda.Event | None

    @classmethod
    def start(cls, losses: dict[str, Tensor], names: list[str], **values: Any) -> Reading:
        """Begin to copy `losses`, the mean over the processes, beside what is known already."""
        if not losses:
            return cls(values, names, [], None, None)
        stacked = torch.stack([value.detach().float() for value in losses.values()])
        host = mean_over_processes(stacked).to("cpu", non_blocking=True)
        ready = None
        if stacked.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        return cls(values, names, list(losses), host, ready)

    def finish(self) -> dict[str, float]:
        """The losses. Raises `TrainingError` if one is not finite."""
        if self.host is None:
            return {}
        if self.ready is not None:
            self.ready.synchronize()
        losses = dict(zip(self.losses, self.host.tolist(), strict=True))
        if not all(math.isfinite(value) for value in losses.values()):
            raise TrainingError(
                f"step {self.values['step']} ({self.values['kind']}): losses {losses}; "
                f"photos: {', '.join(self.names)}; the last checkpoint stays"
            )
        return losses


@dataclass
class Timer:
    """Time since the last step, and how much of it was waiting for data."""

    started: float
    waited: float = 0.0
    total: float = 0.0
    total_waited: float = 0.0

    def batches(self, loader: DataLoader[Any]) -> Iterator[Any]:
        """The loader's batches; the time they take to come is counted."""
        iterator = iter(loader)
        while True:
            before = time.perf_counter()
            batch = next(iterator, loader)  # the loader itself marks the end: None is a batch
            self.waited += time.perf_counter() - before
            if batch is loader:
                return
            yield batch

    def lap(self) -> dict[str, float]:
        """Seconds of the step that just ended, and of waiting for its data."""
        now = time.perf_counter()
        seconds, waited = now - self.started, self.waited
        self.started, self.waited = now, 0.0
        self.total += seconds
        self.total_waited += waited
        return {"seconds": round(seconds, 4), "waited": round(waited, 4)}


def run_training(
    training: Training,
    samples: GeneratorSamples | DetectorSamples,
    schedule: Schedule,
    run: RunDirectory,
    device: torch.device,
    workers: int,
) -> None:
    """Train in place, from the run's newest checkpoint on, to the end of the plan.

    Every step is a line of `stats.jsonl`, written one step late. Raises `TrainingError` on a
    loss that is not finite; the checkpoints stay. Raises `ProcessError` where several
    processes start from different steps.
    """
    batches = len(samples) // schedule.batch_size
    passes = training.plan(batches)
    start, first, step = 0, 0, 0
    state = run.load()
    if state is not None:
        training.load(state)
        start, first, step = state["pass"], state["batch"], state["step"]
    require_same(step, "processes found different checkpoints; they must share the run directory")
    if state is not None and state.get("light"):
        # The learning rates of the inner step are those of the epoch that goes on.
        epoch = passes[min(start, len(passes) - 1)].epoch
        rewarm(training, samples, schedule.batch_size, batches, epoch, device, workers)
    run.rewind(step)

    origin = provenance()
    made_by = {"commit": origin["commit"], **origin["versions"], "settings": run.settings}
    total = sum(current.batches for current in passes)
    timer = Timer(time.perf_counter())
    reading: Reading | None = None
    mean = RunningMean()
    loader = _loader(passes[start:], first, samples, schedule.batch_size, device, workers)
    with tqdm(total=total, initial=step, unit="step", disable=process_rank() > 0) as progress:

        def finish(reading: Reading) -> None:
            losses = reading.finish()
            mean.add(losses.get("loss"))
            run.log(**reading.values, **losses)
            progress.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})

        steps = _steps(passes[start:], first)
        for (ahead, index), batch in zip(steps, timer.batches(loader), strict=True):
            current = passes[start + ahead]
            losses: dict[str, Tensor] = {}
            # A process without a face would keep the others waiting for its part.
            if all_agree(batch is not None):
                batch = batch.to(device)
                losses = training.step(current, batch)
            step += 1
            if reading is not None:
                finish(reading)
            names = [] if batch is None else batch.names
            reading = Reading.start(
                losses, names, step=step, kind=current.kind, epoch=current.epoch, **timer.lap()
            )
            progress.set_description(f"{current.kind}, epoch {current.epoch}", refresh=False)
            progress.update()
            if losses and schedule.pictures_every and step % schedule.pictures_every == 0:
                run.picture(training.pictures(batch), step)
            ended = index + 1 == current.batches
            if ended or step % schedule.checkpoint_every == 0:
                finish(reading)  # before its weights are kept
                reading = None
                where = {"pass": start + ahead + ended, "batch": 0 if ended else index + 1}
                known = {"step": step, "photos": len(samples), "made_by": made_by}
                state = {**training.state(), **where, **known}
                run.save(state, schedule.keep_checkpoints, mean.take())
    if process_rank() == 0 and timer.total:
        share = timer.total_waited / timer.total
        tqdm.write(f"{run.path}: {step} steps done; {share:.1%} of the time waited for data")


@dataclass
class RunningMean:
    """Mean loss since the last checkpoint."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float | None) -> None:
        """Take one more value; None is none."""
        if value is not None:
            self.total += value
            self.count += 1

    def take(self) -> float | None:
        """The mean, None of nothing; starts anew."""
        mean = self.total / self.count if self.count else None
        self.total, self.count = 0.0, 0
        return mean


def advance(optimizer: torch.optim.Optimizer, still: bool = False) -> None:
    """Take the optimizer's step and forget the gradients.

    `still`: at a learning rate of zero, so that Adam's moments and counts go on and the
    parameters stay.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    if still:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


def rewarm(
    training: Training,
    samples: GeneratorSamples | DetectorSamples,
    batch_size: int,
    batches: int,
    epoch: int,
    device: torch.device,
    workers: int,
) -> None:
    """Fill the optimizers' moments by steps that change nothing else."""
    passes = training.rewarm_plan(batches, epoch)
    loader = _loader(passes, 0, samples, batch_size, device, workers)
    with tqdm(
        zip(_steps(passes, 0), loader, strict=True),
        desc="filling the optimizers' moments",
        total=sum(current.batches for current in passes),
        disable=process_rank() > 0,
    ) as steps:
        for (number, _), batch in steps:
            if all_agree(batch is not None):
                training.step(passes[number], batch.to(device), still=True)


def _loader(
    passes: Sequence[Pass],
    first: int,
    samples: GeneratorSamples | DetectorSamples,
    batch_size: int,
    device: torch.device,
    workers: int,
) -> DataLoader[Any]:
    order = BatchOrder(
        passes, len(samples), batch_size, samples.seed, first, process_rank(), process_count()
    )
    return run_loader(samples, order, workers, pin_memory=device.type == "cuda")


def _steps(passes: Sequence[Pass], first: int) -> Iterator[tuple[int, int]]:
    """The number of the pass and the batch in it, of every step from `first` on."""
    for number, current in enumerate(passes):
        for index in range(first, current.batches):
            yield number, index
        first = 0
