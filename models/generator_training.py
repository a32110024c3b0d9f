"""Trains the blur generator against its critic and adversary (paper section 3)."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models.detection import pseudo_labels
from models.detector_training import TrainingError
from models.generator import BlurGenerator
from models.multibox import MultiBoxLoss, Targets
from models.objectives import generator_objectives, review_loss
from models.redraw import frame_masks, redraw
from models.retinaface import RetinaFace
from utils.face_dataset import Batch, GeneratorSamples, epoch_loader
from utils.run_dir import RunDirectory


@dataclass(frozen=True)
class Pass:
    """One pass over the data: `kind` is warm, moments, adversary or generator.

    `stage` tells passes of one epoch apart, so that each draws its own random numbers.
    """

    kind: str
    epoch: int
    stage: int
    batches: int


def plan_passes(recipe: dict[str, Any], batches: int, warm_start: bool) -> list[Pass]:
    """The whole run in order: warm start, then per epoch phase (a) and phase (b).

    Before the very first phase (b), `moment_warmup` adversary steps give its optimizer the
    moments that the differentiable step starts from.
    """
    passes = []
    adversary_epochs = recipe["adversary_epochs"]
    moments_stage, warm_stage = adversary_epochs + 1, adversary_epochs + 2
    left = recipe["warm_start_steps"] if warm_start else 0
    for epoch in range(math.ceil(left / batches)):
        passes.append(Pass("warm", epoch, warm_stage, min(left - epoch * batches, batches)))
    for epoch in range(recipe["epochs"]):
        passes += [Pass("adversary", epoch, stage, batches) for stage in range(adversary_epochs)]
        if epoch == 0:
            passes.append(Pass("moments", 0, moments_stage, min(recipe["moment_warmup"], batches)))
        passes.append(Pass("generator", epoch, adversary_epochs, batches))
    return passes


@dataclass
class Networks:
    """The three networks and their optimizers; phase (a) and phase (b) have one each."""

    generator: BlurGenerator
    critic: RetinaFace
    adversary: RetinaFace
    warm_optimizer: torch.optim.Adam
    generator_optimizer: torch.optim.Adam
    phase_a_optimizer: torch.optim.Adam
    phase_b_optimizer: torch.optim.Adam

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold; the critic never changes."""
        return {name: part.state_dict() for name, part in vars(self).items() if name != "critic"}

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        for name, part in vars(self).items():
            if name != "critic":
                part.load_state_dict(state[name])


def build_networks(
    generator: BlurGenerator, critic: RetinaFace, recipe: dict[str, Any], device: torch.device
) -> Networks:
    """Place the networks on `device`; the adversary starts as a copy of the critic."""
    for network in (generator, critic):
        network.to(device).to(memory_format=torch.channels_last)
    adversary = copy.deepcopy(critic).train()
    critic.eval().requires_grad_(False)
    adversary_parameters = [p for p in adversary.parameters() if p.requires_grad]
    betas = tuple(recipe["betas"])
    return Networks(
        generator,
        critic,
        adversary,
        torch.optim.Adam(generator.parameters(), lr=recipe["warm_start_lr"]),
        torch.optim.Adam(generator.parameters(), lr=recipe["generator_lr"], betas=betas),
        torch.optim.Adam(adversary_parameters, lr=recipe["adversary_lr"], betas=betas),
        torch.optim.Adam(adversary_parameters, lr=recipe["adversary_lr"], betas=betas),
    )


@dataclass(frozen=True)
class DeviceBatch:
    """A batch on the device: x, x_blur [B, 3, H, W] in 0-255, m [B, 1, H, W], y."""

    clean: Tensor
    blurred: Tensor
    mask: Tensor
    labels: Targets
    boxes: list[np.ndarray]

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> DeviceBatch:
        """Move a loader's batch and draw its masks."""
        assert batch.blurred is not None  # GeneratorSamples always gives the pair
        boxes = [
            rows[keep].numpy().astype(np.float64)
            for rows, keep in zip(batch.boxes, batch.present, strict=True)
        ]
        height, width = batch.images.shape[2:]
        return cls(
            _float_images(batch.images, device),
            _float_images(batch.blurred, device),
            frame_masks(boxes, height, width).to(device, non_blocking=True).float(),
            Targets(batch.boxes, batch.present).to(device),
            boxes,
        )


def _float_images(images: Tensor, device: torch.device) -> Tensor:
    images = images.to(device, non_blocking=True).float()
    return images.contiguous(memory_format=torch.channels_last)


def train_generator(
    generator: BlurGenerator,
    critic: RetinaFace,
    samples: GeneratorSamples,
    run: RunDirectory,
    device: torch.device,
    workers: int,
    warm_start: bool,
) -> None:
    """Train `generator` in place by `config["train_generator"]`, from the run's checkpoint on.

    `warm_start` first makes a fresh generator reproduce the blur. Raises `TrainingError`
    on a loss that is not finite; the last checkpoint stays.
    """
    config = run.settings["config"]
    recipe = config["train_generator"]
    networks = build_networks(generator, critic, recipe, device)
    batches = len(samples) // recipe["batch_size"]
    passes = plan_passes(recipe, batches, warm_start)
    start, first, step = 0, 0, 0
    state = run.load()
    if state is not None:
        networks.load(state)
        start, first, step = state["pass"], state["batch"], state["step"]
    run.rewind_log(step)

    total = sum(p.batches for p in passes)
    with tqdm(total=total, initial=step, unit="step") as progress:
        for position in range(start, len(passes)):
            current = passes[position]
            decay = recipe["lr_decay"] ** current.epoch
            networks.generator_optimizer.param_groups[0]["lr"] = recipe["generator_lr"] * decay
            networks.phase_b_optimizer.param_groups[0]["lr"] = recipe["adversary_lr"] * decay
            progress.set_description(f"{current.kind}, epoch {current.epoch}")
            loader = epoch_loader(
                samples,
                recipe["batch_size"],
                current.stage,
                current.epoch,
                first,
                workers,
                pin_memory=device.type == "cuda",
            )
            started = time.perf_counter()
            for index, batch in zip(range(first, current.batches), loader, strict=False):
                losses: dict[str, float] = {}
                if batch is not None:
                    losses = _step(current.kind, networks, DeviceBatch.of(batch, device), config)
                    if not all(math.isfinite(value) for value in losses.values()):
                        raise TrainingError(
                            f"step {step} ({current.kind}): losses {losses}; "
                            f"photos: {', '.join(batch.names)}; the last checkpoint stays"
                        )
                step += 1
                run.log(
                    step=step,
                    kind=current.kind,
                    epoch=current.epoch,
                    **losses,
                    seconds=round(time.perf_counter() - started, 4),  # loading included
                )
                progress.update()
                progress.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
                ended = index + 1 == current.batches
                if ended or step % recipe["checkpoint_every"] == 0:
                    where = {"pass": position + ended, "batch": 0 if ended else index + 1}
                    run.save({**networks.state(), **where, "step": step})
                started = time.perf_counter()
            first = 0


def _step(
    kind: str, networks: Networks, batch: DeviceBatch, config: dict[str, Any]
) -> dict[str, float]:
    if kind == "warm":
        return _warm_start_step(networks, batch, config)
    if kind == "generator":
        losses = _generator_step(networks, batch, config)
        losses["adversary"] = _adversary_step(networks, batch, networks.phase_b_optimizer, config)
        return losses
    optimizer = networks.phase_b_optimizer if kind == "moments" else networks.phase_a_optimizer
    return {"adversary": _adversary_step(networks, batch, optimizer, config)}


def _redraw(networks: Networks, batch: DeviceBatch, config: dict[str, Any]) -> Tensor:
    options = config["generator"]
    return redraw(
        networks.generator, batch.blurred, batch.boxes, options["face_size"], options["context"]
    )


def _multibox(config: dict[str, Any]) -> tuple[MultiBoxLoss, float]:
    options = dict(config["multibox"])
    smoothing = options.pop("label_smoothing")
    return MultiBoxLoss(**options), smoothing


def _warm_start_step(
    networks: Networks, batch: DeviceBatch, config: dict[str, Any]
) -> dict[str, float]:
    """One step towards g = x_blur: the review distance without its budget."""
    distance = review_loss(_redraw(networks, batch, config), batch.blurred, batch.mask, budget=0.0)
    networks.warm_optimizer.zero_grad(set_to_none=True)
    distance.backward()
    networks.warm_optimizer.step()
    return {"distance": distance.item()}


def _adversary_step(
    networks: Networks, batch: DeviceBatch, optimizer: torch.optim.Adam, config: dict[str, Any]
) -> float:
    """One step of f_g on x̂ with the labelled boxes; returns its loss."""
    loss_function, smoothing = _multibox(config)
    with torch.no_grad():
        redrawn = _redraw(networks, batch, config)
    networks.adversary.train()
    frame = (redrawn.shape[2], redrawn.shape[3])
    loss = loss_function(networks.adversary(redrawn), batch.labels, frame, smoothing)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()


def _generator_step(
    networks: Networks, batch: DeviceBatch, config: dict[str, Any]
) -> dict[str, float]:
    """One step of g on the four objectives; returns them before the step."""
    recipe = config["train_generator"]
    loss_function, smoothing = _multibox(config)
    pseudo = pseudo_labels(networks.critic, batch.clean, **_pseudo_options(config))
    objectives = generator_objectives(
        _redraw(networks, batch, config),
        batch.blurred,
        batch.clean,
        batch.mask,
        batch.labels,
        pseudo,
        networks.critic,
        networks.adversary,
        networks.phase_b_optimizer,
        loss_function,
        recipe["review_budget"],
        smoothing,
    )
    parameters = list(networks.generator.parameters())
    # autograd.grad: backward() through a graph made with create_graph would leak it.
    gradients = torch.autograd.grad(objectives.total(recipe["loss_weights"]), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(parameters, recipe["clip_norm"])
    networks.generator_optimizer.step()
    networks.generator_optimizer.zero_grad(set_to_none=True)
    losses = {name: value.item() for name, value in vars(objectives).items()}
    return {**losses, "gradient_norm": norm.item()}


def _pseudo_options(config: dict[str, Any]) -> dict[str, float]:
    return {name: config["critic"][name] for name in ("score_logit", "nms_iou")}
