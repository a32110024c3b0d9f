"""Trains RetinaFace on one variant of the images: clean, blurred, or redrawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

from models.batch_norm import share_batch_norm
from models.detection import detect
from models.multibox import MultiBoxLoss, Targets
from models.retinaface import RetinaFace
from models.training_loop import advance
from models.training_pictures import comparison
from utils.average_precision import average_precision
from utils.face_dataset import Batch, DataError, Source
from utils.image_files import read_photo
from utils.processes import process_count, share_gradients
from utils.sampling import Pass
from utils.widerface import photo_path

REWARM_STEPS = 20
"""Steps that fill AdamW's moments after a light checkpoint."""


class DetectorTraining:
    """A detector and its optimizer (`models.training_loop.Training`): AdamW, one cycle."""

    def __init__(
        self, detector: RetinaFace, config: dict[str, Any], device: torch.device, batches: int
    ) -> None:
        self.recipe = config["train_detector"]
        options = {name: v for name, v in config["multibox"].items() if name != "label_smoothing"}
        self.loss_function = MultiBoxLoss(**options)
        self.detector = detector.to(device).to(memory_format=torch.channels_last).train()
        if process_count() > 1:
            share_batch_norm(detector)
        self.learner = share_gradients(detector)
        self.optimizer = torch.optim.AdamW(
            [p for p in detector.parameters() if p.requires_grad],
            lr=self.recipe["lr"],
            weight_decay=self.recipe["weight_decay"],
        )
        total = batches * self.recipe["epochs"]
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            self.recipe["lr"],
            total_steps=total + 1,
            pct_start=max(0.1, 2 / (total + 1)),  # at least one step: it divides by their number
            cycle_momentum=False,
        )

    def plan(self, batches: int) -> list[Pass]:
        """An epoch a pass."""
        return [Pass("detector", epoch, 0, batches) for epoch in range(self.recipe["epochs"])]

    def rewarm_plan(self, batches: int, epoch: int) -> list[Pass]:
        """One pass over samples of its own."""
        return [Pass("detector", epoch, 1, min(REWARM_STEPS, batches))]

    def step(self, current: Pass, batch: Batch, still: bool = False) -> dict[str, Tensor]:
        """One step; see `models.training_loop.Training.step`."""
        images = batch.images.float().contiguous(memory_format=torch.channels_last)
        rate = images.new_full((), self.optimizer.param_groups[0]["lr"])
        if still:
            buffers = {name: buffer.clone() for name, buffer in self.learner.named_buffers()}
            predictions = functional_call(self.learner, buffers, (images,))
        else:
            predictions = self.learner(images)
        targets = Targets(batch.boxes, batch.present)
        frame = (images.shape[2], images.shape[3])
        loss = self.loss_function(predictions, targets, frame, self.recipe["label_smoothing"])
        loss.backward()
        advance(self.optimizer, still)
        if not still:
            self.scheduler.step()
        return {"loss": loss, "lr": rate}

    def pictures(self, batch: Batch) -> Tensor:
        """The images, with what the detector finds on them."""
        return comparison([batch.images.float()], {"detector": self.detector})

    def state(self) -> dict[str, Any]:
        """Network, optimizer and schedule."""
        names = ("detector", "optimizer", "scheduler")
        return {name: getattr(self, name).state_dict() for name in names}

    def load(self, state: dict[str, Any]) -> None:
        """Restore `state`; of a light checkpoint, the network and the place in the schedule."""
        for name in ("detector", "optimizer", "scheduler"):
            if name in state:
                getattr(self, name).load_state_dict(state[name])
        (self.optimizer.param_groups[0]["lr"],) = self.scheduler.get_last_lr()


def detector_ap(
    detector: RetinaFace, source: Source, min_height: float = 30.0, score: float = 0.02
) -> tuple[float, int]:
    """AP at IoU 0.5 on the photos of `source` at their own size, and how many faces count.

    Faces under `min_height` px and faces labelled invalid are ignored. Detections of at
    least `score` count, after non-maximum suppression at IoU 0.4. Raises `DataError` if no
    face counts.
    """
    detector.eval()
    ignored = [
        photo.invalid | ((photo.boxes[:, 3] - photo.boxes[:, 1]) < min_height)
        for photo in source.photos
    ]
    counted = sum(int((~skip).sum()) for skip in ignored)
    if not counted:
        raise DataError(f"{source.images_dir}: no valid face of at least {min_height:g} px")
    detections: list[tuple[np.ndarray, np.ndarray]] = []
    with tqdm(source.photos, desc="validation", unit="photo") as photos:
        for photo in photos:
            pixels = read_photo(photo_path(source.images_dir, photo.path)).pixels
            detections.append(detect(detector, pixels, score, nms_iou=0.4))
    faces = [photo.boxes for photo in source.photos]
    return average_precision(detections, faces, ignored), counted
