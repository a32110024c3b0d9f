"""WIDER FACE's official AP of a detector, or of the predictions that another one wrote."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from models.detection import DetectionError, detect
from models.retinaface import RetinaFace
from models.weights import DETECTOR, WeightsError, load_retinaface
from utils.device import DeviceError, pick_device
from utils.image_files import PhotoError, read_photo
from utils.plots import precision_recall_figure
from utils.prediction_files import (
    Detections,
    PredictionError,
    read_predictions,
    require_unused,
    write_predictions,
)
from utils.provenance import path_text, provenance
from utils.results import Results, markdown_table, write_results
from utils.wider_protocol import (
    PhotoFaces,
    PrecisionRecall,
    ProtocolError,
    photos_present,
    read_ground_truth,
    score_predictions,
)
from utils.widerface import LabelError, photo_path

SCORE = 0.02
"""Lowest face probability that counts: a curve needs the doubtful detections too."""

NMS_IOU = 0.4

PACKAGES = ("matplotlib", "scipy")
"""The distributions, beside those of requirements.txt, that the measurement needs."""

ERRORS = (
    DetectionError,
    DeviceError,
    LabelError,
    OSError,
    PhotoError,
    PredictionError,
    ProtocolError,
    WeightsError,
)
"""What `run` raises; all with one-line messages."""


def predict_photos(
    detector: RetinaFace,
    images_dir: Path,
    paths: Iterable[str],
    score: float = SCORE,
    nms_iou: float = NMS_IOU,
    longest_side: int | None = None,
) -> dict[str, Detections]:
    """Faces of the photos `images_dir / path`: for each path boxes [N, 4] and scores [N].

    Boxes are float64 (x1, y1, x2, y2) in the photo's own pixels, best first. Photos whose
    longest side exceeds `longest_side` px are reduced to it first; None searches them at their
    own size. The detector is put into eval mode. Raises `utils.image_files.PhotoError` and
    `models.detection.DetectionError`.
    """
    detector.eval()
    found: dict[str, Detections] = {}
    for path in tqdm(list(paths), desc="detection", unit="photo"):
        pixels = read_photo(photo_path(images_dir, path)).pixels
        height, width = pixels.shape[:2]
        size = (width, height)
        if longest_side is not None and max(size) > longest_side:
            zoom = longest_side / max(size)
            size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        boxes, scores = detect(detector, pixels, score, nms_iou)
        found[path] = boxes * np.array([width / size[0], height / size[1]] * 2), scores
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads beside `data`, `output`, `name` and `device`."""
    parser.add_argument(
        "--images", type=Path, help="folder of the photos, <event>/<name>.jpg (DATA/val/images)"
    )
    parser.add_argument(
        "--weights", type=Path, default=DETECTOR, metavar="FILE", help="RetinaFace (%(default)s)"
    )
    add_longest_side(parser, None)
    parser.add_argument(
        "--write-predictions",
        type=Path,
        metavar="DIR",
        help="a new folder for the predictions (predictions, among the results)",
    )
    parser.add_argument(
        "--predictions", type=Path, metavar="DIR", help="score these; nothing is detected"
    )

    def check(options: argparse.Namespace) -> None:
        for name in ("weights", "longest_side", "write_predictions"):
            if options.predictions and getattr(options, name) != parser.get_default(name):
                parser.error(f"--{name.replace('_', '-')} means nothing beside --predictions")

    parser.set_defaults(check=check)


def add_longest_side(parser: argparse.ArgumentParser, default: int | None) -> None:
    """Declare `--longest-side`; None is the photos' own size."""
    text = "own size" if default is None else "%(default)s"
    parser.add_argument(
        "--longest-side",
        type=_longest_side,
        default=default,
        metavar="PX",
        help=f"reduce larger photos to this before the search ({text})",
    )


def _longest_side(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 32 <= int(text) <= 100_000):
        raise argparse.ArgumentTypeError("must be a whole number of 32 or more")
    return int(text)


def run(options: argparse.Namespace) -> None:
    """Detect, unless predictions are given, score by the official protocol, write the results.

    Raises one of `ERRORS`.
    """
    listed = read_ground_truth(options.data / "ground_truth")
    images_dir = options.images or options.data / "val" / "images"
    ground_truth = photos_present(listed, images_dir)
    folder = options.output / options.name
    if options.predictions:
        source = f"predictions in {options.predictions}"
        predictions_dir = options.predictions
    else:
        if options.write_predictions:
            require_unused(options.write_predictions)
        device = pick_device(options.device)
        detector = load_retinaface(options.weights).to(device)
        found = predict_photos(
            detector, images_dir, ground_truth, longest_side=options.longest_side
        )
        source = f"{path_text(options.weights)}, {search_text(options.longest_side)}"
        predictions_dir = options.write_predictions or folder / "predictions"
        write_predictions(predictions_dir, found)
    # Read back, so that what is scored is what anyone can score again.
    predictions = read_predictions(predictions_dir, ground_truth)
    curves = score_predictions(predictions, ground_truth)
    missing = len(ground_truth) - len(predictions)
    if missing:
        print(
            f"evaluate.py: {missing} of {len(ground_truth)} photos have no file in "
            f"{predictions_dir}: counted as photos without a detection",
            file=sys.stderr,
        )
    results = Results(
        title="WIDER FACE detection, official protocol",
        data=data_text(images_dir, ground_truth, listed),
        seeds=[],
        values={
            "detections": source,
            "photos": len(ground_truth),
            "photos_listed": len(listed),
            "photos_without_predictions": missing,
            "difficulties": {name: curve_values(curve) for name, curve in curves.items()},
        },
        text=_markdown(curves, source, missing),
        figures={"precision_recall": precision_recall_figure(curves, "WIDER FACE")},
    )
    write_results(folder, results, provenance(PACKAGES))
    for name, curve in curves.items():
        print(f"{name}: AP {ap_text(curve)}, {curve.faces} faces")
    print(f"{folder / 'results.md'}: {source}, {len(ground_truth)} photos")


def search_text(longest_side: int | None) -> str:
    """How photos are searched, in words."""
    size = f"longest side {longest_side}" if longest_side else "own size"
    return f"{size}, score at least {SCORE}, NMS {NMS_IOU}"


def data_text(
    images_dir: Path, present: Mapping[str, PhotoFaces], listed: Mapping[str, PhotoFaces]
) -> str:
    """Say which photos an AP is measured on, and what it cannot be compared with."""
    text = f"{images_dir}: {len(present)} of the {len(listed)} WIDER FACE validation photos."
    if len(present) < len(listed):
        text += " AP on a part compares methods; it is not comparable with published figures."
    return text


def curve_values(curve: PrecisionRecall) -> dict[str, Any]:
    """A curve in plain values; five digits tell apart any two faces of the set."""
    return {
        "ap": curve.ap,
        "faces": curve.faces,
        "recall": curve.recall.round(5).tolist(),
        "precision": curve.precision.round(5).tolist(),
    }


def ap_text(curve: PrecisionRecall) -> str:
    """An AP with four digits; a dash where no face is counted."""
    return f"{curve.ap:.4f}" if curve.faces else "–"


def _markdown(curves: Mapping[str, PrecisionRecall], source: str, missing: int) -> str:
    """The table of the results, and how they were got."""
    rows = [(name, ap_text(curve), curve.faces) for name, curve in curves.items()]
    remark = f"Detections: {source}."
    if missing:
        remark += f" {missing} photos have no prediction file and count as without a detection."
    return markdown_table(("set", "AP", "faces"), rows) + f"\n\n{remark}"
