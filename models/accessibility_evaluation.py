"""Accessibility: what a detector that was trained on clean photos finds on anonymised ones.

The labelled validation photos are written in each variant to results/<name>/photos/<variant>, coded
as dartblur.py codes its copies, and searched by one detector; WIDER FACE's official protocol. A run
that was stopped goes on with the photos that are missing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from models.detection import DetectionError
from models.detector_evaluation import (
    add_longest_side,
    ap_text,
    curve_values,
    data_text,
    predict_photos,
    search_text,
)
from models.variants import VARIANTS, VariantError, VariantPhotos, write_variants
from models.weights import DETECTOR, GENERATOR, WeightsError, load_retinaface
from utils.artifact_summary import CLEAN, kept_share, spread_text
from utils.config import load_config
from utils.device import DeviceError, pick_device
from utils.image_files import PhotoError
from utils.jobs import JobError
from utils.plots import bars_figure, precision_recall_figure
from utils.provenance import file_digest, path_text, provenance
from utils.results import Results, ResultsError, hold_settings, markdown_table, write_results
from utils.wider_protocol import (
    DIFFICULTIES,
    PrecisionRecall,
    ProtocolError,
    photos_present,
    read_ground_truth,
    score_predictions,
)
from utils.widerface import LabelError, find_labels, read_labels

PACKAGES = ("matplotlib", "scipy")
"""The distributions, beside those of requirements.txt, that the measurement needs."""

ERRORS = (
    DetectionError,
    DeviceError,
    JobError,
    LabelError,
    OSError,
    PhotoError,
    ProtocolError,
    ResultsError,
    VariantError,
    WeightsError,
)
"""What `run` raises; all with one-line messages."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads beside `data`, `output`, `name` and `device`."""
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(VARIANTS),
        metavar="NAME",
        help=f"some of {', '.join(VARIANTS)} (all)",
    )
    parser.add_argument(
        "--weights", type=Path, default=DETECTOR, metavar="FILE", help="RetinaFace (%(default)s)"
    )
    parser.add_argument(
        "--generator",
        type=Path,
        default=GENERATOR,
        metavar="FILE",
        help="weights that redraw the faces (%(default)s)",
    )
    add_longest_side(parser, None)
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes that write photos (%(default)s)"
    )

    def check(options: argparse.Namespace) -> None:
        if CLEAN not in options.variants:
            parser.error("--variants must hold clean: the others are compared with it")
        if options.jobs < 1:
            parser.error("--jobs must be 1 or more")

    parser.set_defaults(check=check)


def run(options: argparse.Namespace) -> None:
    """Write the variants, search them, write the results. Raises one of `ERRORS`."""
    folder, config = options.output / options.name, load_config()
    images_dir = options.data / "val" / "images"
    listed = read_ground_truth(options.data / "ground_truth")
    ground_truth = photos_present(listed, images_dir)
    labels = find_labels(options.data, "val")
    labelled = {PurePosixPath(photo.path).as_posix(): photo for photo in read_labels(labels)}
    unlabelled = ground_truth.keys() - labelled.keys()
    if unlabelled:
        raise VariantError(
            f"{labels}: lacks {len(unlabelled)} of the {len(ground_truth)} photos in {images_dir}, "
            f"first {min(unlabelled)}"
        )
    detector = load_retinaface(options.weights).to(pick_device(options.device))
    hold_settings(
        folder,
        {
            **{section: config[section] for section in ("blur", "generator", "output")},
            "labels": file_digest(labels),
            "weights": file_digest(options.generator),
        },
    )
    photos = {
        variant: VariantPhotos(
            variant,
            [labelled[path] for path in ground_truth],
            images_dir,
            folder / "photos" / variant,
            config,
            [options.generator],
            options.device,
        )
        for variant in options.variants
    }
    write_variants(list(photos.values()), options.jobs)
    curves = {}
    for variant, copies in photos.items():
        found = predict_photos(
            detector, copies.output, ground_truth, longest_side=options.longest_side
        )
        curves[variant] = score_predictions(found, ground_truth)
        aps = (f"{name} {ap_text(curve)}" for name, curve in curves[variant].items())
        print(f"{variant}: AP {', '.join(aps)}", flush=True)
    source = f"{path_text(options.weights)}, {search_text(options.longest_side)}"
    kept = kept_shares(curves)
    results = Results(
        title="Accessibility: faces that a clean-trained detector finds on anonymised photos",
        data=data_text(images_dir, ground_truth, listed),
        seeds=[],
        values={
            "detector": source,
            "generator": path_text(options.generator),
            "variants": {
                variant: {name: curve_values(curve) for name, curve in found.items()}
                for variant, found in curves.items()
            },
            "kept": kept,
        },
        text=markdown(curves, kept, source, path_text(options.generator), config["output"]),
        figures={
            "kept": bars_figure(
                {
                    variant: {name: (share, math.nan) for name, share in shares.items()}
                    for variant, shares in kept.items()
                },
                "AP / AP on the clean photos",
                "Accessibility",
            ),
            "precision_recall": precision_recall_figure(
                {variant: found["medium"] for variant, found in curves.items()},
                "Anonymised photos, medium",
            ),
        },
    )
    write_results(folder, results, provenance(PACKAGES))
    print(f"{folder / 'results.md'}: {source}, {len(ground_truth)} photos")


def kept_shares(
    curves: Mapping[str, Mapping[str, PrecisionRecall]],
) -> dict[str, dict[str, float]]:
    """By variant and difficulty, the share of the AP on clean photos that is kept."""
    clean = curves[CLEAN]
    return {
        variant: {name: kept_share(found[name].ap, clean[name].ap) for name in DIFFICULTIES}
        for variant, found in curves.items()
    }


def markdown(
    curves: Mapping[str, Mapping[str, PrecisionRecall]],
    kept: Mapping[str, Mapping[str, float]],
    source: str,
    generator: str,
    output: Mapping[str, Any],
) -> str:
    """The table, and how it was measured."""
    header = ["searched on", *(f"AP {name}" for name in DIFFICULTIES)]
    header += [f"kept, {name}" for name in DIFFICULTIES]
    rows = [
        [
            variant,
            *(ap_text(found[name]) for name in DIFFICULTIES),
            *(spread_text((kept[variant][name], math.nan), percent=True) for name in DIFFICULTIES),
        ]
        for variant, found in curves.items()
    ]
    return "\n\n".join(
        [
            markdown_table(header, rows),
            f"Detector: {source}. Boxes are hidden where the labels say; every variant, the clean "
            f"one too, is coded as dartblur.py codes its copies (JPEG {output['jpeg_quality']}, "
            f"{output['jpeg_subsampling']}). Generator: {generator}.",
        ]
    )
