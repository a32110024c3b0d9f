"""A sheet of examples: photos in the public domain, in every variant.

The sample photos of this repository (img/samples) lie in rows, the variants in columns. Faces are
those that the anonymiser's detector finds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models.anonymize import AnonymizeError, find_faces
from models.detection import DetectionError
from models.redraw import RedrawError
from models.variants import VARIANTS, load_variant
from models.weights import DETECTOR, GENERATOR, WeightsError, load_retinaface
from utils.config import load_config
from utils.device import DeviceError, pick_device
from utils.image_files import PhotoError, find_photos, read_photo
from utils.plots import pictures_figure
from utils.provenance import ROOT, path_text, provenance
from utils.results import Results, markdown_table, write_results

PACKAGES = ("matplotlib",)
"""The distributions, beside those of requirements.txt, that the command needs."""

ERRORS = (
    AnonymizeError,
    DetectionError,
    DeviceError,
    OSError,
    PhotoError,
    RedrawError,
    WeightsError,
)
"""What `run` raises; all with one-line messages."""

SAMPLES = ROOT / "img" / "samples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads beside `output`, `name` and `device`."""
    parser.add_argument(
        "--generator", type=Path, default=GENERATOR, metavar="FILE", help="weights (%(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    """Draw the sheet. Raises one of `ERRORS`."""
    config, device = load_config(), pick_device(options.device)
    detector = load_retinaface(DETECTOR).to(device).eval()
    variants = [load_variant(name, config, [options.generator], device) for name in VARIANTS]
    photos, _ = find_photos(SAMPLES)
    rows, counts = [], []
    for photo in photos:
        pixels = read_photo(photo).pixels
        boxes, _ = find_faces(detector, pixels, config)
        rows.append([variant(pixels, boxes, photo.name) for variant in variants])
        counts.append((photo.name, len(boxes)))
    results = Results(
        title="Examples",
        data="Photos in the public domain; their sources stand in img/README.md.",
        seeds=[],
        values={"faces": dict(counts), "generator": path_text(options.generator)},
        text=markdown_table(["photo", "faces hidden"], counts)
        + f"\n\nGenerator: {path_text(options.generator)}.",
        figures={"examples": pictures_figure(VARIANTS, rows)},
    )
    folder = options.output / options.name
    write_results(folder, results, provenance(PACKAGES))
    print(f"{folder / 'results.md'}: {len(photos)} photos")
