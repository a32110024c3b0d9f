#!/usr/bin/env python
"""Train the blur generator against its critic and adversary, or a face detector.

The generator, on WIDER FACE under data/widerface (run gaussblur.py first):

    python train.py
    python train.py --data DIR --blurred OUT --run runs/first --set train_generator.frame=320

The generator, on any folder of photos with a label file (WIDER's or RetinaFace's format):

    python train.py --photos FOLDER --labels FOLDER/label.txt

A face detector, on the clean images or any other variant of them:

    python train.py --model detector --backbone mobilenet0.25_imagenet.tar
    python train.py --model detector --backbone ... --images images_G2_M80

Continue a run that was stopped; write the weights that dartblur.py reads; score a detector:

    python train.py --resume runs/first
    python train.py --export runs/first --to models/weights/mine.safetensors
    python train.py --validate models/weights/retinaface_mobilenet0.25.safetensors --data DIR
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import torch

from models.detection import DetectionError
from models.detector_training import TrainingError, detector_ap, train_detector
from models.generator import BlurGenerator
from models.generator_training import train_generator
from models.retinaface import RetinaFace
from models.weights import DETECTOR, WeightsError, load_backbone, load_weights, save_weights
from utils.config import CONFIG, ConfigError, load_config
from utils.device import DeviceError, pick_device
from utils.face_dataset import (
    DataError,
    DetectorSamples,
    GeneratorSamples,
    Source,
    labelled_source,
    validation_source,
    wider_source,
)
from utils.image_files import PhotoError
from utils.run_dir import RunDirectory, RunError
from utils.widerface import LabelError, find_labels

EXPECTED_ERRORS = (
    ConfigError,
    DataError,
    DetectionError,
    DeviceError,
    LabelError,
    OSError,
    PhotoError,
    RunError,
    TrainingError,
    WeightsError,
)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["generator", "detector"], default="generator")
    parser.add_argument(
        "--data", type=Path, default=Path("data/widerface"), help="WIDER FACE tree (%(default)s)"
    )
    parser.add_argument(
        "--blurred",
        type=Path,
        help="tree of the blurred copies or other variants (default: the --data tree)",
    )
    parser.add_argument("--photos", type=Path, help="train on this folder instead of --data")
    parser.add_argument("--labels", type=Path, help="label file of --photos")
    parser.add_argument(
        "--images", default="images", help="detector: image folder to learn from (%(default)s)"
    )
    parser.add_argument("--run", type=Path, help="run directory (default: runs/MODEL)")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="continue this run")
    parser.add_argument("--export", type=Path, metavar="RUN", help="write a run's weights to --to")
    parser.add_argument("--to", type=Path, metavar="FILE", help="safetensors file of --export")
    parser.add_argument(
        "--validate", type=Path, metavar="WEIGHTS", help="print a detector's AP on the val split"
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="recipe (%(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one number of the recipe; may be repeated",
    )
    parser.add_argument(
        "--critic", type=Path, default=DETECTOR, help="generator: RetinaFace weights of f"
    )
    parser.add_argument("--init", type=Path, help="start from these weights of the same model")
    parser.add_argument("--backbone", type=Path, help="detector: start its backbone from these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--workers", type=int, default=0, help="loader processes (%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads of the networks")
    arguments = parser.parse_args()
    if (arguments.photos is None) != (arguments.labels is None):
        parser.error("--photos and --labels go together")
    if (arguments.export is None) != (arguments.to is None):
        parser.error("--export and --to go together")
    if arguments.resume:
        free = {"resume", "device", "workers", "threads"}
        changed = [
            f"--{name}"
            for name, value in vars(arguments).items()
            if name not in free and value != parser.get_default(name)
        ]
        if changed:
            parser.error(f"--resume takes the run's own settings; leave out {' '.join(changed)}")
    meaningless = {
        "images": arguments.model == "generator" or arguments.photos,
        "blurred": arguments.photos,
        "critic": arguments.model == "detector",
        "backbone": arguments.model == "generator" or arguments.init,
    }
    for name, is_meaningless in meaningless.items():
        if is_meaningless and getattr(arguments, name) != parser.get_default(name):
            parser.error(f"--{name} means nothing beside the other options")
    if arguments.workers < 0 or (arguments.threads is not None and arguments.threads < 1):
        parser.error("--workers must be 0 or more, --threads 1 or more")
    if arguments.seed < 0:
        parser.error("--seed must be 0 or more")
    return arguments


def run_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a run must remember to be continued: plain values, paths as absolute text."""
    names = ("data", "blurred", "photos", "labels", "critic", "init", "backbone")
    paths = {name: getattr(arguments, name) for name in names}
    return {
        "model": arguments.model,
        "images": arguments.images,
        "seed": arguments.seed,
        **{name: None if path is None else str(path.resolve()) for name, path in paths.items()},
        "config": load_config(arguments.config, arguments.set),
    }


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


def train(
    settings: dict[str, Any],
    open_run: Callable[[], RunDirectory],
    device: torch.device,
    workers: int,
) -> None:
    """Wire one run: build its networks, load what they start from, hand over to the loop.

    The run is opened last: missing data or weights must not leave a run directory behind.
    """
    config = settings["config"]
    source = training_source(settings)
    batch_size = config[f"train_{settings['model']}"]["batch_size"]
    if len(source.photos) < batch_size:
        raise DataError(
            f"{len(source.photos)} photos make no batch of {batch_size}; "
            f"lower train_{settings['model']}.batch_size"
        )
    torch.manual_seed(settings["seed"])
    if settings["model"] == "detector":
        detector = RetinaFace(config["critic"]["backbone"])
        if settings["init"]:
            load_weights(detector, Path(settings["init"]))
        elif settings["backbone"]:
            load_backbone(detector, Path(settings["backbone"]))
        recipe = config["train_detector"]
        detector_samples = DetectorSamples(
            source, settings["seed"], recipe["frame"], tuple(recipe["crop"])
        )
        train_detector(detector, detector_samples, config, open_run(), device, workers)
        return
    generator = BlurGenerator()
    if settings["init"]:
        load_weights(generator, Path(settings["init"]))
    critic = RetinaFace(config["critic"]["backbone"])
    load_weights(critic, Path(settings["critic"]))
    recipe = config["train_generator"]
    samples = GeneratorSamples(
        source,
        settings["seed"],
        recipe["frame"],
        tuple(recipe["aspect"]),
        tuple(recipe["scale"]),
        recipe["placements"],
        config["blur"]["kernel_factor"],
        config["blur"]["jpeg_quality"],
    )
    train_generator(
        generator, critic, samples, open_run(), device, workers, warm_start=not settings["init"]
    )


def export(run: RunDirectory, path: Path) -> None:
    """Write the run's generator as float16, or its detector as float32, safetensors."""
    state = run.load()
    if state is None:
        raise RunError(f"{run.path}: no checkpoint yet")
    if run.settings["model"] == "detector":
        detector = RetinaFace(run.settings["config"]["critic"]["backbone"])
        detector.load_state_dict(state["detector"])
        save_weights(detector, path)
    else:
        generator = BlurGenerator()
        generator.load_state_dict(state["generator"])
        save_weights(generator, path, torch.float16)
    print(f"{path}: {run.settings['model']} of {run.path} at step {state['step']}")


def validate(arguments: argparse.Namespace, device: torch.device) -> None:
    """Print a detector's AP on the validation photos."""
    config = load_config(arguments.config, arguments.set)
    detector = RetinaFace(config["critic"]["backbone"]).to(device)
    load_weights(detector, arguments.validate)
    source = validation_source(arguments.data)
    ap, faces = detector_ap(detector, source)
    print(
        f"{arguments.validate}: AP {ap:.4f} at IoU 0.5, {faces} valid faces of at least 30 px "
        f"on {len(source.photos)} photos at their own size"
    )


def main() -> int:
    """Run the command line; returns the exit code."""
    arguments = parse_arguments()
    cv2.setNumThreads(1)
    # The differentiable step needs float32: TF32 convolutions, cuDNN's default, keep 10 bits.
    torch.backends.cudnn.allow_tf32 = False
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    try:
        device = pick_device(arguments.device)
        if arguments.validate:
            validate(arguments, device)
        elif arguments.export:
            export(RunDirectory.open(arguments.export), arguments.to)
        elif arguments.resume:
            run = RunDirectory.open(arguments.resume)
            train(run.settings, lambda: run, device, arguments.workers)
        else:
            settings = run_settings(arguments)
            path = arguments.run or Path("runs") / arguments.model
            train(settings, lambda: RunDirectory.create(path, settings), device, arguments.workers)
    except EXPECTED_ERRORS as error:
        # A loader process sends its traceback along; the error itself is the last line.
        print(f"train.py: {str(error).splitlines()[-1]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("train.py: stopped; continue with --resume and the run directory", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
