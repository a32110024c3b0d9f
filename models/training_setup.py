"""Builds a training from its settings: data, networks and what they start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.detector_training import DetectorTraining
from models.generator import BlurGenerator
from models.generator_training import GeneratorTraining
from models.retinaface import RetinaFace
from models.training_loop import Schedule
from models.weights import build_retinaface, load_backbone, load_retinaface, load_weights
from utils.face_dataset import (
    DataError,
    DetectorSamples,
    GeneratorSamples,
    Source,
    labelled_source,
    wider_source,
)
from utils.processes import process_count
from utils.widerface import find_labels


@dataclass(frozen=True)
class Setup:
    """All that `models.training_loop.run_training` needs, but for the run directory."""

    training: GeneratorTraining | DetectorTraining
    samples: GeneratorSamples | DetectorSamples
    schedule: Schedule


def build_training(
    settings: dict[str, Any], device: torch.device, state: dict[str, Any] | None = None
) -> Setup:
    """Build what the settings of a run (`train.run_settings`) describe.

    `state`: the checkpoint that will be loaded, if there is one; the weights to start from
    are not looked for then. Raises `DataError`, `LabelError`, `WeightsError` or `OSError`.
    """
    config = settings["config"]
    recipe = config[f"train_{settings['model']}"]
    source = training_source(settings)
    batch_size, processes = recipe["batch_size"], process_count()
    require_batch(settings["model"], len(source.photos), config)
    begun_on = (state or {}).get("photos", len(source.photos))
    if begun_on != len(source.photos):
        raise DataError(
            f"the run was begun on {begun_on} photos, {len(source.photos)} are here; "
            f"its place in an epoch and its schedule fit the former only"
        )
    if batch_size % processes:
        raise DataError(
            f"a batch of {batch_size} cannot be shared by {processes} processes; set "
            f"train_{settings['model']}.batch_size to a multiple"
        )
    torch.manual_seed(settings["seed"])
    schedule = Schedule.of(recipe)
    if settings["model"] == "detector":
        detector = start_detector(settings, state)
        batches = len(source.photos) // batch_size
        return Setup(
            DetectorTraining(detector, config, device, batches),
            DetectorSamples(source, settings["seed"], recipe["frame"], tuple(recipe["crop"])),
            schedule,
        )
    generator = BlurGenerator()
    if settings["init"] and state is None:
        load_weights(generator, Path(settings["init"]))
    if state is None:
        critic = load_retinaface(Path(settings["critic"]))
    else:
        critic = build_retinaface(state["critic"], Path("the checkpoint"))
    warm_start = not settings["init"]
    training = GeneratorTraining(generator, critic, config, device, warm_start)
    return Setup(training, generator_samples(source, settings["seed"], config), schedule)


def require_batch(model: str, photos: int, config: Mapping[str, Any]) -> None:
    """Raise `DataError` where so many photos make no batch of `model`'s training."""
    batch_size = config[f"train_{model}"]["batch_size"]
    if photos < batch_size:
        raise DataError(
            f"{photos} photos make no batch of {batch_size}; lower train_{model}.batch_size"
        )


def photo_run_settings(
    model: str,
    photos: Path,
    labels: Path,
    seed: int,
    config: Mapping[str, Any],
    **weights: Path | None,
) -> dict[str, Any]:
    """Settings of a run on a folder of labelled photos, as train.py writes them.

    `weights`: the files that `critic`, `init` and `backbone` name, where there are any.
    """
    files = {name: weights.get(name) for name in ("critic", "init", "backbone")}
    return {
        "model": model,
        "images": "images",
        "seed": seed,
        "data": None,
        "blurred": None,
        "photos": str(photos.resolve()),
        "labels": str(labels.resolve()),
        **{name: None if path is None else str(path.resolve()) for name, path in files.items()},
        "config": dict(config),
    }


def start_detector(settings: dict[str, Any], state: dict[str, Any] | None) -> RetinaFace:
    """The detector before its first step, or with the architecture of the checkpoint `state`."""
    if state is not None:
        return build_retinaface(state["detector"], Path("the checkpoint"))
    if settings["init"]:
        return load_retinaface(Path(settings["init"]))
    detector = RetinaFace(settings["config"]["critic"]["backbone"])
    if settings["backbone"]:
        load_backbone(detector, Path(settings["backbone"]))
    return detector


def generator_samples(source: Source, seed: int, config: dict[str, Any]) -> GeneratorSamples:
    """Samples for the generator by the numbers of the recipe."""
    recipe = config["train_generator"]
    return GeneratorSamples(
        source,
        seed,
        recipe["frame"],
        tuple(recipe["aspect"]),
        tuple(recipe["scale"]),
        recipe["placements"],
        config["blur"]["kernel_factor"],
        config["blur"]["jpeg_quality"],
        config["generator"]["face_size"],
        config["generator"]["context"],
    )


def training_source(settings: dict[str, Any]) -> Source:
    """Find the photos, labels and blurred copies that the settings name."""
    blurred_folder = settings["config"]["blur"]["folder"]
    if settings["photos"]:
        return labelled_source(Path(settings["photos"]), Path(settings["labels"]))
    data = Path(settings["data"])
    copies = Path(settings["blurred"] or data) / "train"
    if settings["model"] == "generator":
        return wider_source(data, "train", blurred=copies / blurred_folder)
    folder = settings["images"]
    images = (data / "train" if folder == "images" else copies) / folder
    return labelled_source(images, find_labels(data, "train"))
