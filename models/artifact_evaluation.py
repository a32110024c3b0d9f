"""Training artifacts: what a detector learns from anonymised photos.

One detector after the other (RetinaFace MobileNet x0.25; same start, schedule, augmentations and
JPEG coding) is trained on each variant of the labelled training photos, and tested on the clean
validation photos by WIDER FACE's official protocol:

    clean             as they are
    gaussian          plain blur; also mosaic and black
    gaussian-ellipse  blur in an ellipse that fades towards its edge
    gaussian-decoy    blur of the faces and of as many boxes of the same sizes elsewhere
    dartblur          redrawn by --generator

Shares are those of the clean-trained AP that is kept, and of the gap from Gaussian blur to clean
that is closed, comparing detectors of one seed; then mean and spread over seeds. A preset says
which AP the clean-trained detector must reach: below it, all results are marked INVALID.

--preset full is meant for a GPU (--workers N to feed it), --preset small for two CPU cores
(--jobs 2). All that is done stays in the results folder; started again, the command goes on.

A generator must not be judged only on photos it has seen. With --folds 2, each half of the training
photos is redrawn by a generator that was trained on the other half. Write the halves' label files,
train the two, and measure:

    python evaluate.py artifacts --folds 2
    python train.py --photos DATA/train/images --labels results/artifacts/fold0.txt --run runs/fold0
    python train.py --photos DATA/train/images --labels results/artifacts/fold1.txt --run runs/fold1
    python train.py --export runs/fold0 --to fold0.safetensors
    python train.py --export runs/fold1 --to fold1.safetensors
    python evaluate.py artifacts --folds 2 --fold-weights fold0.safetensors fold1.safetensors
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.artifact_cells import Cell, cell_settings, read_cell, run_cell, run_unfinished
from models.artifact_report import Measured, artifact_results
from models.detection import DetectionError
from models.detector_evaluation import add_longest_side, data_text
from models.training_loop import TrainingError
from models.training_setup import start_detector
from models.variants import FOLDS, VARIANTS, VariantError, VariantPhotos, fold_of, write_variants
from models.weights import GENERATOR, WeightsError
from utils.boxes import usable
from utils.config import CONFIG, ConfigError, load_config
from utils.device import DeviceError, pick_device
from utils.face_dataset import DataError, labelled_source
from utils.image_files import PhotoError
from utils.jobs import JobError
from utils.provenance import file_digest, path_text, provenance
from utils.results import ResultsError, hold_settings, write_results
from utils.run_dir import RunError
from utils.wider_protocol import ProtocolError, photos_present, read_ground_truth
from utils.widerface import LabelError, LabelledPhoto, find_labels, write_labels

PACKAGES = ("matplotlib", "scipy")
"""The distributions, beside those of requirements.txt, that the measurement needs."""

ERRORS = (
    ConfigError,
    DataError,
    DetectionError,
    DeviceError,
    JobError,
    LabelError,
    OSError,
    PhotoError,
    ProtocolError,
    ResultsError,
    RunError,
    TrainingError,
    VariantError,
    WeightsError,
)
"""What `run` raises; all with one-line messages."""

SECTIONS = ("blur", "generator", "critic", "multibox", "train_detector", "output")
"""What of config.yaml decides on the results."""

BACKBONE = Path("data/mobilenet0.25_imagenet.tar")

JUDGED = "medium"
"""The set on which the clean-trained detector must reach the preset's AP, and that figures show."""


@dataclass(frozen=True)
class Preset:
    """A size of the measurement.

    recipe: overrides of config.yaml. longest_side: of the test photos, px. minimum_clean_ap: what
    every clean-trained detector must reach on `JUDGED`: weak clean training flatters the rest.
    """

    seeds: Sequence[int]
    variants: Sequence[str]
    recipe: Sequence[str]
    longest_side: int
    minimum_clean_ap: float


PRESETS = {
    "small": Preset(
        seeds=(0,),
        variants=("clean", "gaussian", "black", "dartblur"),
        recipe=(
            "train_detector.epochs=12",
            "train_detector.frame=320",
            "train_detector.batch_size=16",
        ),
        longest_side=640,
        minimum_clean_ap=0.6,
    ),
    "full": Preset(
        seeds=(0, 1, 2),
        variants=VARIANTS,
        recipe=(
            "train_detector.epochs=60",
            "train_detector.frame=640",
            "train_detector.batch_size=16",
        ),
        longest_side=1024,
        minimum_clean_ap=0.75,
    ),
}
"""The clean-trained detector of `small` reached 0.87 on medium. `full` was not run yet: its minimum
is provisional."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads beside `data`, `output`, `name` and `device`."""
    parser.add_argument("--preset", choices=list(PRESETS), default="full", help="%(default)s")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, metavar="NAME", help="of those above (preset's)"
    )
    parser.add_argument(
        "--init",
        choices=["imagenet", "scratch"],
        default="imagenet",
        help="start of the detectors: --backbone, or random numbers (%(default)s)",
    )
    parser.add_argument(
        "--generator",
        type=Path,
        default=GENERATOR,
        metavar="FILE",
        help="weights that redraw the faces (%(default)s)",
    )
    parser.add_argument("--folds", type=int, choices=[1, FOLDS], default=1, help="see above")
    parser.add_argument(
        "--fold-weights",
        nargs=FOLDS,
        type=Path,
        metavar=("A", "B"),
        help="generators trained on fold0.txt and on fold1.txt",
    )
    add_training_arguments(parser)

    def check(options: argparse.Namespace) -> None:
        if "clean" not in (options.variants or ("clean",)):
            parser.error("--variants must hold clean: the others are compared with it")
        if options.fold_weights and options.folds == 1:
            parser.error(f"--fold-weights goes with --folds {FOLDS}")
        if options.fold_weights and options.generator != GENERATOR:
            parser.error("--generator means nothing beside --fold-weights")
        if options.init == "scratch" and options.backbone != BACKBONE:
            parser.error("--backbone means nothing beside --init scratch")
        check_training_arguments(options, parser)

    parser.set_defaults(check=check)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what every measurement reads that trains detectors at a preset's size."""
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="(preset's)")
    parser.add_argument(
        "--backbone",
        type=Path,
        default=BACKBONE,
        metavar="FILE",
        help="ImageNet weights of MobileNet x0.25 (%(default)s)",
    )
    add_longest_side(parser, None)
    parser.add_argument(
        "--minimum-clean-ap", type=float, metavar="AP", help=f"on {JUDGED} (preset's)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one number of config.yaml and the preset; may be repeated",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="N processes with a thread each (1)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads of the one job")
    parser.add_argument(
        "--workers", type=int, default=0, metavar="N", help="loader processes a job (%(default)s)"
    )


def check_training_arguments(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program where the arguments of `add_training_arguments` contradict each other."""
    if options.threads and options.jobs > 1:
        parser.error("--threads is for one job; each of several has one thread")
    if min(options.jobs, options.threads or 1) < 1 or options.workers < 0:
        parser.error("--jobs and --threads must be 1 or more, --workers 0 or more")
    if min(options.seeds or [0]) < 0:
        parser.error("--seeds must be 0 or more")


def run(options: argparse.Namespace) -> None:
    """Write the variants, train and test the detectors, write the results.

    What is there already is not made again. Raises one of `ERRORS`.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    pick_device(options.device)
    folder = options.output / options.name
    labels = find_labels(options.data, "train")
    source = labelled_source(options.data / "train" / "images", labels)
    if options.folds == FOLDS and not options.fold_weights:
        write_folds(folder, source.photos)
        return

    preset = PRESETS[options.preset]
    variants = list(dict.fromkeys(options.variants or preset.variants))
    seeds = list(dict.fromkeys(options.seeds or preset.seeds))
    longest_side = options.longest_side or preset.longest_side
    minimum = options.minimum_clean_ap
    minimum = preset.minimum_clean_ap if minimum is None else minimum
    config = load_config(CONFIG, [*preset.recipe, *options.set])
    backbone = options.backbone if options.init == "imagenet" else None
    generators = options.fold_weights or [options.generator]
    images_dir = options.data / "val" / "images"
    listed = read_ground_truth(options.data / "ground_truth")
    ground_truth = photos_present(listed, images_dir)

    if backbone is not None:
        require_backbone(backbone, ", or take --init scratch")

    cells = []
    for seed in seeds:
        for variant in variants:
            photos = folder / "variants" / variant
            settings = cell_settings(photos, labels, backbone, seed, config)
            place = folder / "cells" / f"{variant}-{seed}"
            cell = Cell(variant, seed, place, settings, images_dir, ground_truth, longest_side)
            cells.append(cell)
    start_detector(cells[0].settings, None)  # weights that do not fit must not cost an hour first
    hold_settings(
        folder,
        {
            **{section: config[section] for section in SECTIONS},
            "longest_side": longest_side,
            "labels": file_digest(labels),
            "test_photos": len(ground_truth),
            "backbone": None if backbone is None else file_digest(backbone),
            "generators": [file_digest(file) for file in generators],
        },
    )
    copies = [
        VariantPhotos(
            variant,
            source.photos,
            source.images_dir,
            folder / "variants" / variant,
            config,
            generators,
            options.device,
        )
        for variant in variants
    ]
    write_variants(copies, options.jobs)
    run_unfinished(run_cell, cells, options.device, options.workers, options.jobs)

    measured = Measured(
        cells=[read_cell(cell.folder) or {} for cell in cells],
        variants=variants,
        seeds=seeds,
        judged=JUDGED,
        minimum_clean_ap=minimum,
        setup={
            "preset": options.preset,
            "overrides": options.set,
            "init": options.init,
            "folds": options.folds,
            "generators": [path_text(file) for file in generators],
            "longest_side": longest_side,
            "training_photos": len(source.photos),
            "training_faces": sum(int(usable(photo.boxes).sum()) for photo in source.photos),
            "train_detector": config["train_detector"],
            "output": config["output"],
        },
    )
    results = artifact_results(measured, data_text(images_dir, ground_truth, listed))
    write_results(folder, results, provenance(PACKAGES))
    print(f"{folder / 'results.md'}: {len(cells)} detectors, {len(ground_truth)} test photos")


def require_backbone(file: Path, instead: str = "") -> None:
    """Raise `WeightsError` where the ImageNet weights are missing; `instead`: what else helps."""
    if not file.is_file():
        raise WeightsError(
            f"{file}: no such weight file; ImageNet weights of MobileNet x0.25 come with the "
            f"PyTorch ports of RetinaFace: name them with --backbone{instead}"
        )


def write_folds(folder: Path, photos: Sequence[LabelledPhoto]) -> None:
    """Write the label file of each fold, `fold0.txt` and `fold1.txt`, and say what to do next."""
    for fold in range(FOLDS):
        mine = [photo for photo in photos if fold_of(photo.path) == fold]
        file = folder / f"fold{fold}.txt"
        write_labels(file, mine)
        print(f"{file}: {len(mine)} photos; train a generator on them, see --help")
