"""Trains the blur generator against its critic and adversary (paper section 3)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from models.batch_norm import share_batch_norm
from models.detection import pseudo_labels
from models.generator import BlurGenerator
from models.multibox import MultiBoxLoss, Targets
from models.objectives import OBJECTIVES, generator_objectives, review_loss
from models.redraw import redraw_tiles
from models.retinaface import RetinaFace
from models.training_loop import advance
from models.training_pictures import comparison
from utils.face_dataset import GeneratorBatch
from utils.processes import process_count, share_gradients
from utils.sampling import Pass

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def plan_passes(recipe: dict[str, Any], batches: int, warm_start: bool) -> list[Pass]:
    """The whole run in order: warm start, then per epoch phase (a) and phase (b).

    Before the very first phase (b), `moment_warmup` adversary steps give its optimizer the
    moments that the differentiable step starts from.
    """
    passes = []
    adversary_epochs = recipe["adversary_epochs"]
    left = recipe["warm_start_steps"] if warm_start else 0
    for epoch in range(math.ceil(left / batches)):
        passes.append(
            Pass("warm", epoch, adversary_epochs + 2, min(left - epoch * batches, batches))
        )
    for epoch in range(recipe["epochs"]):
        if recipe["train_adversary"]:
            for stage in range(adversary_epochs):
                passes.append(Pass("adversary", epoch, stage, batches))
        if epoch == 0:
            warmup = min(recipe["moment_warmup"], batches)
            passes.append(Pass("moments", 0, adversary_epochs + 1, warmup))
        passes.append(Pass("generator", epoch, adversary_epochs, batches))
    return passes


@dataclass(frozen=True)
class Prepared:
    """A batch as the networks take it: x, x_blur [B, 3, H, W] in 0-255, m [B, 1, H, W]."""

    clean: Tensor
    blurred: Tensor
    mask: Tensor

    @classmethod
    def of(cls, batch: GeneratorBatch) -> Prepared:
        """Make floats of the bytes that travelled."""
        return cls(batch.images.float(), batch.blurred.float(), batch.mask.float())


class GeneratorTraining:
    """The three networks, their optimizers, and the steps (`models.training_loop.Training`).

    The adversary starts as a copy of the critic. Phase (a) and phase (b) have an optimizer
    each. Networks are trained in place; several processes train replicas.
    """

    def __init__(
        self,
        generator: BlurGenerator,
        critic: RetinaFace,
        config: dict[str, Any],
        device: torch.device,
        warm_start: bool,
    ) -> None:
        self.config = config
        self.recipe = config["train_generator"]
        self.warm_start = warm_start
        options = dict(config["multibox"])
        self.label_smoothing = options.pop("label_smoothing")
        self.loss_function = MultiBoxLoss(**options)
        self.precision = pick_precision(self.recipe["precision"], device)
        self.generator = generator.to(device).to(memory_format=torch.channels_last)
        # Not channels-last: the second derivatives would take a third longer on the CPU.
        self.critic = critic.to(device)
        self.adversary = copy.deepcopy(critic).train()
        critic.eval().requires_grad_(False)
        # What the steps call: the same parameters, compiled, and with gradients shared.
        self.compiled: Any = generator
        if self.recipe["compile"]:
            self.compiled = torch.compile(generator, dynamic=True)
        if process_count() > 1:
            share_batch_norm(self.adversary)
        self.drawing = share_gradients(self.compiled)
        self.learner = share_gradients(self.adversary)
        trained = [p for p in self.adversary.parameters() if p.requires_grad]
        adam, betas = torch.optim.Adam, tuple(self.recipe["betas"])
        self.warm_optimizer = adam(generator.parameters(), lr=self.recipe["warm_start_lr"])
        self.generator_optimizer = adam(
            generator.parameters(), lr=self.recipe["generator_lr"], betas=betas
        )
        self.phase_a_optimizer = adam(trained, lr=self.recipe["adversary_lr"], betas=betas)
        self.phase_b_optimizer = adam(trained, lr=self.recipe["adversary_lr"], betas=betas)

    def plan(self, batches: int) -> list[Pass]:
        """See `plan_passes`."""
        return plan_passes(self.recipe, batches, self.warm_start)

    def rewarm_plan(self, batches: int, epoch: int) -> list[Pass]:
        """The adversary's moments first: the generator's gradients depend on them."""
        stage = self.recipe["adversary_epochs"] + 3
        steps = min(self.recipe["moment_warmup"], batches)
        return [Pass("adversary", epoch, stage, steps), Pass("generator", epoch, stage + 1, steps)]

    def state(self) -> dict[str, Any]:
        """Networks and optimizers; the critic too, so that a run does not depend on its file."""
        optimizers = [name for name in vars(self) if name.endswith("_optimizer")]
        names = ["generator", "adversary", "critic", *optimizers]
        return {name: getattr(self, name).state_dict() for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state`; of a light checkpoint, the networks alone."""
        for name in ("generator", "adversary", "critic"):
            getattr(self, name).load_state_dict(state[name])
        for name in state.keys() & {name for name in vars(self) if name.endswith("_optimizer")}:
            getattr(self, name).load_state_dict(state[name])

    def step(self, current: Pass, batch: GeneratorBatch, still: bool = False) -> dict[str, Tensor]:
        """One step of the pass's kind; see `models.training_loop.Training.step`."""
        decay = self.recipe["lr_decay"] ** current.epoch
        self.generator_optimizer.param_groups[0]["lr"] = self.recipe["generator_lr"] * decay
        self.phase_b_optimizer.param_groups[0]["lr"] = self.recipe["adversary_lr"] * decay
        prepared = Prepared.of(batch)
        if current.kind == "warm":
            return self._warm_start_step(batch, prepared)
        self.warm_optimizer.state.clear()  # it has served, and would fill the checkpoints
        if current.kind == "generator":
            losses = self._generator_step(batch, prepared, still)
            if not still:
                losses |= self._adversary_step(batch, prepared, [self.phase_b_optimizer])
            return losses
        if still:
            both = [self.phase_a_optimizer, self.phase_b_optimizer]
            return self._adversary_step(batch, prepared, both, still)
        is_phase_a = current.kind == "adversary"
        optimizer = self.phase_a_optimizer if is_phase_a else self.phase_b_optimizer
        return self._adversary_step(batch, prepared, [optimizer])

    def pictures(self, batch: GeneratorBatch) -> Tensor:
        """Clean, Gaussian and DartBlur, with what critic and adversary find on each."""
        prepared = Prepared.of(batch)
        with torch.no_grad():
            redrawn = redraw_tiles(self.generator, prepared.blurred, prepared.mask, batch.plan)
        detectors = {"critic": self.critic, "adversary": self.adversary}
        return comparison([prepared.clean, prepared.blurred, redrawn], detectors)

    def _redraw(self, batch: GeneratorBatch, prepared: Prepared) -> Tensor:
        # Without gradients there is nothing for the processes to share.
        drawing = self.drawing if torch.is_grad_enabled() else self.compiled
        device_type = prepared.blurred.device.type
        with torch.autocast(device_type, self.precision, self.precision != torch.float32):
            redrawn = redraw_tiles(drawing, prepared.blurred, prepared.mask, batch.plan)
        return redrawn.contiguous()

    def _warm_start_step(self, batch: GeneratorBatch, prepared: Prepared) -> dict[str, Tensor]:
        """One step towards g = x_blur: the review distance without its budget."""
        redrawn = self._redraw(batch, prepared)
        distance = review_loss(redrawn, prepared.blurred, prepared.mask, budget=0.0)
        distance.backward()
        advance(self.warm_optimizer)
        return {"distance": distance}

    def _adversary_step(
        self,
        batch: GeneratorBatch,
        prepared: Prepared,
        optimizers: list[torch.optim.Adam],
        still: bool = False,
    ) -> dict[str, Tensor]:
        """One step of f_g on x̂ with the labelled boxes."""
        still = still or not self.recipe["train_adversary"]
        with torch.no_grad():
            redrawn = self._redraw(batch, prepared)
        if still:  # its BatchNorm statistics must not move either
            buffers = {name: buffer.clone() for name, buffer in self.learner.named_buffers()}
            predictions = functional_call(self.learner, buffers, (redrawn,))
        else:
            predictions = self.learner(redrawn)
        labels = Targets(batch.boxes, batch.present)
        frame = (redrawn.shape[2], redrawn.shape[3])
        loss = self.loss_function(predictions, labels, frame, self.label_smoothing)
        loss.backward()
        gradients = [parameter.grad for parameter in self.adversary.parameters()]
        for optimizer in optimizers:
            for parameter, gradient in zip(self.adversary.parameters(), gradients, strict=True):
                parameter.grad = gradient
            advance(optimizer, still)
        return {"adversary": loss}

    def _generator_step(
        self, batch: GeneratorBatch, prepared: Prepared, still: bool
    ) -> dict[str, Tensor]:
        """One step of g on the four objectives; returns them before the step."""
        weights = self.recipe["loss_weights"]
        frame = (prepared.clean.shape[2], prepared.clean.shape[3])
        thresholds = {name: self.config["critic"][name] for name in ("score_logit", "nms_iou")}
        pseudo = pseudo_labels(self.critic, prepared.clean, **thresholds)
        losses = generator_objectives(
            self._redraw(batch, prepared),
            prepared.blurred,
            prepared.clean,
            prepared.mask,
            self.loss_function.assign(Targets(batch.boxes, batch.present), frame),
            self.loss_function.assign(pseudo, frame),
            self.critic,
            self.adversary,
            self.phase_b_optimizer,
            self.loss_function,
            self.recipe["review_budget"],
            self.label_smoothing,
            [name for name in OBJECTIVES if weights[name]],
            self.recipe["second_order"],
            self.precision,
        )
        total = torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()
        parameters = list(self.generator.parameters())
        total.backward(inputs=parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.recipe["clip_norm"])
        advance(self.generator_optimizer, still)
        return {"loss": total, **losses, "gradient_norm": norm}


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Precision of the first-order passes; "auto" is bfloat16 where the GPU has it."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
        name = "bfloat16" if has_bfloat16 else "float32"
    return PRECISIONS[name]
