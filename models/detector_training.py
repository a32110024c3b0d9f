"""Trains RetinaFace on one variant of the images: clean, blurred, or redrawn."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from models.detection import detect
from models.multibox import MultiBoxLoss, Targets
from models.retinaface import RetinaFace
from utils.average_precision import average_precision
from utils.face_dataset import DataError, DetectorSamples, Source, epoch_loader
from utils.image_files import read_photo
from utils.run_dir import RunDirectory
from utils.widerface import photo_path


class TrainingError(Exception):
    """A run that cannot go on; the message is one line that says where it stood."""


def train_detector(
    detector: RetinaFace,
    samples: DetectorSamples,
    config: dict[str, Any],
    run: RunDirectory,
    device: torch.device,
    workers: int,
) -> None:
    """Train `detector` in place by `config["train_detector"]`, from the run's checkpoint on.

    AdamW with one learning-rate cycle over all steps. Raises `TrainingError` on a
    non-finite loss; the last checkpoint stays.
    """
    recipe = config["train_detector"]
    loss_function = MultiBoxLoss(
        **{k: config["multibox"][k] for k in ("match_iou", "negatives_per_positive", "box_weight")}
    )
    detector.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        [p for p in detector.parameters() if p.requires_grad],
        lr=recipe["lr"],
        weight_decay=recipe["weight_decay"],
    )
    steps_per_epoch = len(samples) // recipe["batch_size"]
    total = steps_per_epoch * recipe["epochs"]
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe["lr"],
        total_steps=total + 1,
        pct_start=max(0.1, 2 / (total + 1)),  # at least one step: it divides by their number
        cycle_momentum=False,
    )
    step = 0
    state = run.load()
    if state is not None:
        detector.load_state_dict(state["detector"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        step = state["step"]
    run.rewind_log(step)

    with tqdm(total=total, initial=step, desc="detector", unit="step") as progress:
        while step < total:
            epoch, first = divmod(step, steps_per_epoch)
            loader = epoch_loader(
                samples, recipe["batch_size"], 0, epoch, first, workers, device.type == "cuda"
            )
            for batch in loader:
                losses: dict[str, float] = {}
                if batch is not None:
                    images = batch.images.to(device, non_blocking=True).float()
                    images = images.contiguous(memory_format=torch.channels_last)
                    targets = Targets(batch.boxes, batch.present).to(device)
                    loss = loss_function(
                        detector(images),
                        targets,
                        (samples.frame, samples.frame),
                        recipe["label_smoothing"],
                    )
                    losses["loss"] = loss.item()
                    if not math.isfinite(losses["loss"]):
                        raise TrainingError(
                            f"step {step}: the loss is {losses['loss']}; "
                            f"photos: {', '.join(batch.names)}; the last checkpoint stays"
                        )
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                scheduler.step()
                step += 1
                run.log(step=step, epoch=epoch, **losses, lr=scheduler.get_last_lr()[0])
                progress.update()
                progress.set_postfix({name: f"{value:.3f}" for name, value in losses.items()})
                if step % recipe["checkpoint_every"] == 0 or step == total:
                    run.save(
                        {
                            "detector": detector.state_dict(),
                            "optimizer": optimizer.state_dict(),
                            "scheduler": scheduler.state_dict(),
                            "step": step,
                        }
                    )


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
