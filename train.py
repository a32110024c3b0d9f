#!/usr/bin/env python
"""Train the blur generator against its critic and adversary, or a face detector.

The generator, on WIDER FACE under data/widerface (run gaussblur.py first):

    python train.py --dry-run                  # checks everything, and says how long it will take
    python train.py
    python train.py --data DIR --blurred OUT --run runs/first --set train_generator.frame=320

The generator, on any folder of photos with a label file (WIDER's or RetinaFace's format):

    python train.py --photos FOLDER --labels FOLDER/label.txt

A face detector, on the clean images or any other variant of them:

    python train.py --model detector --backbone mobilenet0.25_imagenet.tar
    python train.py --model detector --backbone ... --images images_G2_M80

Several GPUs, here 4; the batch size is that of all together, so the recipe stays as it is. The
lone dashes keep torchrun from taking --run for an option of its own:

    torchrun --nproc_per_node=4 -- train.py --run runs/first --workers 4

Continue a run that was stopped; carry it to another machine in a small file, and go on there:

    python train.py --resume runs/first
    python train.py --light runs/first --to first.safetensors
    python train.py --resume first.safetensors --run runs/first --data DIR

Write the weights that dartblur.py reads; score a detector:

    python train.py --export runs/first --to models/weights/mine.safetensors
    python train.py --validate models/weights/retinaface_mobilenet0.25.safetensors --data DIR
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import torch

from models.detection import DetectionError
from models.detector_training import detector_ap
from models.dry_run import dry_run
from models.generator import BlurGenerator
from models.light_checkpoint import read_light, write_light
from models.training_loop import TrainingError, run_training
from models.training_setup import build_training
from models.weights import (
    DETECTOR,
    WeightsError,
    build_retinaface,
    load_retinaface,
    save_weights,
)
from utils.config import CONFIG, ConfigError, load_config
from utils.device import DeviceError, pick_device
from utils.face_dataset import DataError, validation_source
from utils.image_files import PhotoError
from utils.processes import ProcessError, all_agree, joined, process_rank
from utils.run_dir import RunDirectory, RunError
from utils.widerface import LabelError

EXPECTED_ERRORS = (
    ConfigError,
    DataError,
    DetectionError,
    DeviceError,
    LabelError,
    OSError,
    PhotoError,
    ProcessError,
    RunError,
    TrainingError,
    WeightsError,
)

DATA = Path("data/widerface")

CARRIED = ("data", "blurred", "photos", "labels")
"""Options that a light checkpoint takes anew: another machine has other folders."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=["generator", "detector"], default="generator")
    parser.add_argument("--data", type=Path, help=f"WIDER FACE tree (default: {DATA})")
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
    parser.add_argument(
        "--dry-run", action="store_true", help="check data, weights, disk and a step; write nothing"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="continue this run, or this light checkpoint"
    )
    parser.add_argument("--export", type=Path, metavar="RUN", help="write a run's weights to --to")
    parser.add_argument(
        "--best", action="store_true", help="export the best checkpoint, not the newest"
    )
    parser.add_argument(
        "--light", type=Path, metavar="RUN", help="write a run's light checkpoint to --to"
    )
    parser.add_argument("--to", type=Path, metavar="FILE", help="safetensors file to write")
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
    if ((arguments.export or arguments.light) is None) != (arguments.to is None):
        parser.error("--to goes with --export or --light, and they with it")
    if arguments.best and not arguments.export:
        parser.error("--best goes with --export")
    if arguments.resume:
        free = {"resume", "device", "workers", "threads", "dry_run"}
        if arguments.resume.suffix == ".safetensors":
            free |= {"run", *CARRIED}
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
    paths["data"] = paths["data"] or DATA
    return {
        "model": arguments.model,
        "images": arguments.images,
        "seed": arguments.seed,
        **{name: None if path is None else str(path.resolve()) for name, path in paths.items()},
        "config": load_config(arguments.config, arguments.set),
    }


def train(arguments: argparse.Namespace, device: torch.device) -> None:
    """Start a run, continue one, or try what it needs (`--dry-run`).

    A new run is opened last: missing data or weights must not leave a run directory behind.
    """
    writes = process_rank() == 0  # the first of several processes alone
    run, state = None, None
    if arguments.resume and arguments.resume.suffix == ".safetensors":
        settings, state = read_light(arguments.resume)
        for name in CARRIED:
            path = getattr(arguments, name)
            if path is not None:
                settings[name] = str(path.resolve())
    elif arguments.resume:
        run = RunDirectory.open(arguments.resume, writes)
        settings, state = run.settings, run.load()
    else:
        settings = run_settings(arguments)
    path = arguments.resume if run else arguments.run or Path("runs") / settings["model"]
    try:
        setup = build_training(settings, device, state)
        if arguments.dry_run:
            report = dry_run(setup, path, device, arguments.workers, state["step"] if state else 0)
            if writes:
                print(report)
            return
        if run is None:
            run = RunDirectory.create(path, settings, writes, state)
        all_agree(True)  # the others wait until the first has written
        run_training(setup.training, setup.samples, setup.schedule, run, device, arguments.workers)
    except torch.cuda.OutOfMemoryError:
        section = f"train_{settings['model']}"
        raise TrainingError(
            f"the GPU's memory does not suffice; share the batch among GPUs with torchrun, or "
            f"lower {section}.batch_size or {section}.frame in a new run, which --init lets go on "
            f"from weights that --export writes. The run's checkpoints stay"
        ) from None


def export(run: RunDirectory, path: Path, best: bool) -> None:
    """Write the run's generator as float16, or its detector as float32, safetensors."""
    state = run.load(best)
    if state is None:
        raise RunError(f"{run.path}: no checkpoint yet")
    if run.settings["model"] == "detector":
        save_weights(build_retinaface(state["detector"], run.path), path)
    else:
        generator = BlurGenerator()
        generator.load_state_dict(state["generator"])
        save_weights(generator, path, torch.float16)
    print(f"{path}: {run.settings['model']} of {run.path} at step {state['step']}")


def validate(arguments: argparse.Namespace, device: torch.device) -> None:
    """Print a detector's AP on the validation photos."""
    detector = load_retinaface(arguments.validate).to(device)
    source = validation_source(arguments.data or DATA)
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
            export(RunDirectory.open(arguments.export), arguments.to, arguments.best)
        elif arguments.light:
            write_light(RunDirectory.open(arguments.light), arguments.to)
        else:
            with joined(device) as own_device:
                train(arguments, own_device)
    except torch.cuda.OutOfMemoryError:  # of --validate
        print("train.py: the GPU's memory does not suffice; use --device cpu", file=sys.stderr)
        return 1
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
