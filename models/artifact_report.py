"""Tables and figures of the artifact measurement, from what its cells have left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils.artifact_summary import CLEAN, Spread, spread_text, summarise
from utils.plots import bars_figure, learning_curves_figure, precision_recall_figure
from utils.results import Results, markdown_table
from utils.wider_protocol import DIFFICULTIES, PrecisionRecall

SCALES = {"ap": False, "kept": True, "closed": True}  # in per cent or not
HEADINGS = {"ap": "AP", "kept": "share of clean AP kept", "closed": "share of the gap closed"}


@dataclass(frozen=True)
class Measured:
    """Finished cells (`models.artifact_cells.run_cell`), one for each seed and variant.

    judged: the set on which each clean cell must reach `minimum_clean_ap`.
    setup: how it was measured; plain values.
    """

    cells: Sequence[Mapping[str, Any]]
    variants: Sequence[str]
    seeds: Sequence[int]
    judged: str
    minimum_clean_ap: float
    setup: Mapping[str, Any]

    def of(self, variant: str) -> list[Mapping[str, Any]]:
        """The cells of one variant, seed by seed."""
        found = {cell["seed"]: cell for cell in self.cells if cell["variant"] == variant}
        return [found[seed] for seed in self.seeds]

    def aps(self, difficulty: str) -> dict[str, list[float]]:
        """By variant, the AP of each seed's trained detector; NaN where no face counts."""
        return {
            variant: [_number(cell["points"][-1]["ap"][difficulty]) for cell in self.of(variant)]
            for variant in self.variants
        }

    @property
    def clean_ap(self) -> float:
        """The lowest AP of a clean-trained detector on the judged set."""
        return min(self.aps(self.judged)[CLEAN])

    @property
    def is_valid(self) -> bool:
        """Whether every clean-trained detector is good enough to compare with."""
        return self.clean_ap >= self.minimum_clean_ap


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def artifact_results(measured: Measured, data: str) -> Results:
    """All that is written of the measurement; `data`: what was tested on, in words."""
    summary = {name: summarise(measured.aps(name)) for name in DIFFICULTIES}
    judged = measured.judged
    return Results(
        title="Training artifacts: detectors trained on anonymised photos, tested on clean ones",
        data=data,
        seeds=measured.seeds,
        values={
            "valid": measured.is_valid,
            "minimum_clean_ap": {judged: measured.minimum_clean_ap},
            "setup": measured.setup,
            "summary": summary,
            "cells": [
                {
                    **{key: cell[key] for key in ("variant", "seed", "photos", "steps", "seconds")},
                    "points": cell["points"],
                    "commit": cell["provenance"]["commit"],
                    "machine": cell["provenance"]["machine"],
                }
                for cell in measured.cells
            ],
        },
        text=markdown(measured, summary),
        figures={
            "kept": bars_figure(
                {
                    variant: {name: summary[name][variant]["kept"] for name in DIFFICULTIES}
                    for variant in measured.variants
                },
                "AP / AP of the clean-trained detector",
                "Share of the clean AP kept" + ("" if measured.is_valid else " (INVALID)"),
            ),
            "learning_curves": learning_curves_figure(
                {
                    variant: [
                        [(point["epoch"], _number(point["ap"][judged])) for point in cell["points"]]
                        for cell in measured.of(variant)
                    ]
                    for variant in measured.variants
                },
                "epoch",
                f"AP on clean photos, {judged}",
                "Learning curves",
            ),
            "precision_recall": precision_recall_figure(
                {
                    variant: _curve(measured.of(variant)[0]["curves"][judged])
                    for variant in measured.variants
                },
                f"Clean photos, {judged}, seed {measured.seeds[0]}",
            ),
        },
    )


def _curve(values: Mapping[str, Any]) -> PrecisionRecall:
    recall, precision = (
        np.array(values[name], dtype=np.float64) for name in ("recall", "precision")
    )
    return PrecisionRecall(_number(values["ap"]), values["faces"], recall, precision)


def markdown(measured: Measured, summary: Mapping[str, Mapping[str, Mapping[str, Spread]]]) -> str:
    """The verdict, a table for each quantity, and how it was measured."""
    blocks = [verdict(measured)]
    for quantity, heading in HEADINGS.items():
        rows = [
            [
                variant,
                *(
                    spread_text(summary[name][variant][quantity], SCALES[quantity])
                    for name in DIFFICULTIES
                ),
            ]
            for variant in measured.variants
        ]
        blocks.append(f"**{heading[0].upper()}{heading[1:]}**")
        blocks.append(markdown_table(["trained on", *DIFFICULTIES], rows))
    return "\n\n".join([*blocks, *_remarks(measured)])


def verdict(measured: Measured) -> str:
    """Whether the clean-trained detectors are good enough, in a sentence."""
    stated = f"{measured.minimum_clean_ap:g} on {measured.judged}"
    if measured.is_valid:
        return (
            f"Valid: every clean-trained detector reaches the stated AP of {stated} "
            f"(lowest {measured.clean_ap:.4f})."
        )
    return (
        f"**INVALID: a clean-trained detector reaches AP {measured.clean_ap:.4f} on "
        f"{measured.judged}, below the stated {measured.minimum_clean_ap:g}. Weak clean training "
        "flatters every other variant: no figure here may be quoted.**"
    )


def _remarks(measured: Measured) -> list[str]:
    setup, recipe = measured.setup, measured.setup["train_detector"]
    output = setup["output"]
    start = "ImageNet weights of its backbone" if setup["init"] == "imagenet" else "random numbers"
    changed = f" with {', '.join(setup['overrides'])}" if setup["overrides"] else ""
    seeds = len(measured.seeds)
    spread = (
        "Mean ± sample standard deviation over the seeds" if seeds > 1 else "One seed, no spread"
    )
    generators = " and ".join(setup["generators"])
    if setup["folds"] > 1:
        generators += ", each on the half of the photos that it was not trained on"
    seconds = sum(cell["seconds"] for cell in measured.cells)
    commits = sorted({cell["provenance"]["commit"] for cell in measured.cells})
    return [
        f"{spread}; shares compare detectors of one seed.",
        f"Detector: RetinaFace MobileNet x0.25 from {start}, {recipe['epochs']} epochs of "
        f"{setup['training_photos']} photos with {setup['training_faces']} faces, crops of "
        f"{recipe['frame']} px, batches of {recipe['batch_size']}; preset "
        f"{setup['preset']}{changed}. The last weights are tested, with no choice among them, on "
        f"clean photos at a longest side of {setup['longest_side']} px. Boxes are hidden where the "
        "labels say. Every variant is coded as dartblur.py codes its copies (JPEG "
        f"{output['jpeg_quality']}, {output['jpeg_subsampling']}). Generator: {generators}.",
        f"Training took {seconds / 60:.0f} minutes for {len(measured.cells)} detectors in all, "
        f"by code of {', '.join(commits)}.",
    ]
