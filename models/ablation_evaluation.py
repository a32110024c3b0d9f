"""Ablation: what each part of the generator's training is worth.

Short generators go on from --init-generator, from the same start, seed and photos: one by the whole
recipe, one without each of its parts:

    rev, proc, post, cycl   the four objectives
    second-order            L_cycl gives no gradient through the adversary's step
    adversary               f_g stays a copy of the critic

Then as in `artifacts`: each generator redraws labelled training photos, a detector is trained on
them and tested on clean validation photos by WIDER FACE's official protocol. So is one for each of
`clean`, `gaussian` and `start`, the generator that all go on from. Generators and detectors train
on different photos: none is judged on those that its training here showed it. Generators that come
out as the same weights, bit for bit, share a detector.

The distance S of each generator's faces to the blur, on validation photos, tells what L_rev is for.

--preset small takes half an hour on two CPU cores (--jobs 2). It is short: where the whole recipe
closes hardly any of the gap from Gaussian blur to clean, the results say that there is nothing to
rank. --preset full is meant for a GPU (--workers N to feed it) and has not been run yet. All that
is done stays in the results folder; started again, the command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from models.ablation_cells import REMOVALS, first_of_each, run_generator, run_review
from models.ablation_plan import CONTROLS, PRESETS, Plan
from models.ablation_report import Ablation, ablation_results
from models.anonymize import AnonymizeError
from models.artifact_cells import read_cell, run_cell, run_unfinished
from models.artifact_evaluation import ERRORS as ARTIFACT_ERRORS
from models.artifact_evaluation import JUDGED, add_training_arguments, check_training_arguments
from models.artifact_report import Measured
from models.detector_evaluation import data_text
from models.redraw import RedrawError
from models.review_evaluation import ReviewError
from models.variants import write_variants
from models.weights import DETECTOR, GENERATOR
from utils.device import pick_device
from utils.provenance import provenance
from utils.results import hold_settings, write_results
from utils.widerface import write_labels

PACKAGES = ("matplotlib", "scipy", "scikit-image")
"""The distributions, beside those of requirements.txt, that the measurement needs."""

ERRORS = (*ARTIFACT_ERRORS, AnonymizeError, RedrawError, ReviewError)
"""What `run` raises; all with one-line messages."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads beside `data`, `output`, `name` and `device`."""
    parser.add_argument("--preset", choices=list(PRESETS), default="small", help="%(default)s")
    parser.add_argument(
        "--without",
        nargs="+",
        choices=list(REMOVALS),
        default=list(REMOVALS),
        metavar="PART",
        help="leave out these parts, one at a time (each of those above)",
    )
    parser.add_argument(
        "--critic", type=Path, default=DETECTOR, metavar="FILE", help="RetinaFace (%(default)s)"
    )
    parser.add_argument(
        "--init-generator",
        type=Path,
        default=GENERATOR,
        metavar="FILE",
        help="generator that all others go on from (%(default)s)",
    )
    add_training_arguments(parser)
    parser.set_defaults(check=lambda options: check_training_arguments(options, parser))


def run(options: argparse.Namespace) -> None:
    """Train the generators, redraw, train and test the detectors, write the results.

    What is there already is not made again. Raises one of `ERRORS`.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    pick_device(options.device)
    plan = Plan.of(options)
    plan.check()
    hold_settings(plan.folder, plan.held())
    for model, source in plan.sources.items():
        write_labels(plan.list_of(model), source.photos)

    how = (options.device, options.workers, options.jobs)
    generators = plan.generators()
    run_unfinished(run_generator, generators, *how, "generator.json")
    reviews = plan.reviews(generators)
    # Once each: the start is the same for all seeds.
    once = {review.folder: review for review in reviews.values()}
    run_unfinished(run_review, list(once.values()), *how, "review.json")

    twins = first_of_each(generators)
    weights = {(cell.row, cell.seed): cell.weights for cell in generators}
    rows = [*CONTROLS, *plan.recipes]
    keys = [(row, seed) for seed in plan.seeds for row in rows]
    detectors = {key: plan.detector(*key) for key in keys if twins.get(key, key[0]) == key[0]}
    copies = {
        plan.photos_of(*key): plan.variant(*key, weights.get(key, options.init_generator))
        for key in detectors
    }
    write_variants(list(copies.values()), options.jobs)
    run_unfinished(run_cell, list(detectors.values()), *how)

    cells = {key: read_cell(cell.folder) or {} for key, cell in detectors.items()}
    trained = {
        (cell.row, cell.seed): read_cell(cell.folder, "generator.json") or {} for cell in generators
    }
    results = ablation_results(
        Ablation(
            Measured(
                [
                    {**cells[twins.get((row, seed), row), seed], "variant": row}
                    for row, seed in keys
                ],
                rows,
                plan.seeds,
                JUDGED,
                plan.minimum,
                plan.setup(),
            ),
            trained,
            {key: read_cell(cell.folder, "review.json") or {} for key, cell in reviews.items()},
            twins,
        ),
        data_text(options.data / "val" / "images", plan.ground_truth, plan.listed),
    )
    write_results(plan.folder, results, provenance(PACKAGES))
    print(
        f"{plan.folder / 'results.md'}: {len(generators)} generators, {len(cells)} detectors, "
        f"{len(plan.ground_truth)} test photos"
    )
