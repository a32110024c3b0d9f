"""How far redrawn faces are from plainly blurred ones, and from the clean ones.

On the labelled validation photos, inside the boxes, before any output is coded: mean absolute
difference (L1), the distance S of the training's review objective, PSNR and SSIM, each the mean
over photos. A photo is within the budget where its S to the blur that the generator was given
is at most train_generator.review_budget.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from models.anonymize import AnonymizeError, Anonymizer, load_anonymizer
from models.redraw import RedrawError
from models.weights import GENERATOR, WeightsError
from utils.blur import face_mask
from utils.boxes import usable
from utils.config import load_config
from utils.device import DeviceError, pick_device
from utils.face_dataset import Source, validation_source
from utils.image_files import PhotoError, jpeg_coded, read_photo
from utils.plots import histogram_figure
from utils.provenance import path_text, provenance
from utils.results import Results, markdown_table, write_results
from utils.similarity import WINDOW, Similarity, similarity
from utils.widerface import LabelError, photo_path


class ReviewError(Exception):
    """Photos that cannot be compared; the message is one line."""


PACKAGES = ("matplotlib", "scikit-image")
"""The distributions, beside those of requirements.txt, that the measurement needs."""

ERRORS = (
    AnonymizeError,
    DeviceError,
    LabelError,
    OSError,
    PhotoError,
    RedrawError,
    ReviewError,
    WeightsError,
)
"""What `run` raises; all with one-line messages."""

GIVEN = "dartblur – coded blur"
"""The pair whose S the training holds under its budget: its blur is the generator's input."""

PAIRS = {
    "dartblur – gaussian": ("dartblur", "gaussian"),
    GIVEN: ("dartblur", "coded"),
    "dartblur – clean": ("dartblur", "clean"),
    "gaussian – clean": ("gaussian", "clean"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads beside `data`, `output`, `name` and `device`."""
    parser.add_argument(
        "--generator", type=Path, default=GENERATOR, metavar="FILE", help="weights (%(default)s)"
    )
    parser.add_argument("--photos", type=int, metavar="N", help="the first N alone (all)")

    def check(options: argparse.Namespace) -> None:
        if options.photos is not None and options.photos < 1:
            parser.error("--photos must be 1 or more")

    parser.set_defaults(check=check)


def run(options: argparse.Namespace) -> None:
    """Compare the photos and write the results. Raises one of `ERRORS`."""
    config, device = load_config(), pick_device(options.device)
    methods = {
        name: load_anonymizer(name, config, device, options.generator, detector=None)
        for name in ("gaussian", "dartblur")
    }
    source = validation_source(options.data)
    rows = list(compared(source, source.photos[: options.photos], methods, config))
    if not rows:
        raise ReviewError(f"{source.images_dir}: no labelled photo has a face")
    budget = config["train_generator"]["review_budget"]
    pairs = {pair: pair_values([row[pair] for row in rows], budget) for pair in PAIRS}
    photos = f"{len(rows)} labelled photos with a face in {source.images_dir}"
    distances = {
        pair: [row[pair].smooth_l1 for row in rows] for pair in (GIVEN, "gaussian – clean")
    }
    results = Results(
        title="Review convenience: redrawn faces against blurred and clean ones",
        data=f"{photos}; boxes from the labels.",
        seeds=[],
        values={
            "photos": len(rows),
            "generator": path_text(options.generator),
            "budget": budget,
            "pairs": pairs,
        },
        text=markdown(pairs, budget, path_text(options.generator)),
        figures={
            "distances": histogram_figure(
                distances, budget, "S inside the boxes of a photo, grey levels", "Review"
            )
        },
    )
    folder = options.output / options.name
    write_results(folder, results, provenance(PACKAGES))
    given = pairs[GIVEN]
    print(
        f"S to the coded blur {given['smooth_l1']:.2f}, {given['within_budget']:.1%} within budget"
    )
    print(f"{folder / 'results.md'}: {len(rows)} photos")


def compared(
    source: Source,
    photos: Sequence[Any],
    methods: Mapping[str, Anonymizer],
    config: Mapping[str, Any],
    pairs: Mapping[str, tuple[str, str]] = PAIRS,
) -> Iterator[dict[str, Similarity]]:
    """Each pair's similarity, photo by photo; photos without a usable face are passed over."""
    for labelled in tqdm(photos, desc="review", unit="photo"):
        if not usable(labelled.boxes).any():
            continue
        path = photo_path(source.images_dir, labelled.path)
        pixels = read_photo(path).pixels
        mask = face_mask(labelled.boxes, *pixels.shape[:2]) > 0
        if min(pixels.shape[:2]) < WINDOW or not mask.any():
            raise ReviewError(
                f"{path}: under {WINDOW} px, or its faces lie outside; not comparable"
            )
        try:
            versions = {
                name: method(pixels, labelled.boxes).pixels for name, method in methods.items()
            }
        except (AnonymizeError, RedrawError) as error:
            raise ReviewError(f"{path}: {error}") from None
        versions["clean"] = pixels
        versions["coded"] = jpeg_coded(versions["gaussian"], config["blur"]["jpeg_quality"])
        yield {
            pair: similarity(versions[one], versions[other], mask)
            for pair, (one, other) in pairs.items()
        }


def pair_values(found: Sequence[Similarity], budget: float) -> dict[str, float]:
    """Means over photos, the 95th percentile of S, the share of photos with S in the budget."""
    table = {field.name: [asdict(one)[field.name] for one in found] for field in fields(Similarity)}
    distances = np.array(table["smooth_l1"])
    return {
        **{name: float(np.mean(values)) for name, values in table.items()},
        "smooth_l1_p95": float(np.percentile(distances, 95)),
        "within_budget": float((distances <= budget).mean()),
    }


def markdown(pairs: Mapping[str, Mapping[str, float]], budget: float, generator: str) -> str:
    """The table, and how it was measured."""
    header = ("pair", "L1", "S", "S, 95th percentile", f"S at most {budget:g}", "PSNR", "SSIM")
    rows = [
        (
            name,
            f"{pair['l1']:.2f}",
            f"{pair['smooth_l1']:.2f}",
            f"{pair['smooth_l1_p95']:.2f}",
            f"{pair['within_budget']:.1%}",
            f"{pair['psnr']:.2f}",
            f"{pair['ssim']:.4f}",
        )
        for name, pair in pairs.items()
    ]
    return "\n\n".join(
        [
            markdown_table(header, rows),
            "Means over photos, of the pixels inside the labelled boxes, before any output is "
            f"coded; L1 and S in grey levels, PSNR in dB. Generator: {generator}. The coded blur "
            "is the generator's input, and the row that the training's budget is about.",
        ]
    )
