"""The arithmetic of the artifact measurement, against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from models.artifact_report import Measured, artifact_results
from utils.artifact_summary import closed_share, kept_share, mean_and_spread, summarise

# By seed. Kept: 0.5 / 0.8 = 0.625 and 0.6 / 0.6 = 1, mean 0.8125, deviation 0.375 / sqrt(2).
# Closed: 0.3 / 0.6 = 0.5 and 0.5 / 0.5 = 1, mean 0.75, deviation 0.5 / sqrt(2).
APS = {"clean": [0.8, 0.6], "gaussian": [0.2, 0.1], "dartblur": [0.5, 0.6]}


def test_shares_and_their_spread() -> None:
    summary = summarise(APS)
    assert summary["dartblur"]["ap"] == pytest.approx((0.55, 0.1 / math.sqrt(2)))
    assert summary["dartblur"]["kept"] == pytest.approx((0.8125, 0.375 / math.sqrt(2)))
    assert summary["dartblur"]["closed"] == pytest.approx((0.75, 0.5 / math.sqrt(2)))
    assert summary["clean"]["kept"] == summary["clean"]["closed"] == (1.0, 0.0)
    assert summary["gaussian"]["closed"] == (0.0, 0.0)


def test_what_is_not_known_is_not_a_number() -> None:
    assert math.isnan(kept_share(0.5, 0.0))
    assert math.isnan(closed_share(0.5, 0.6, 0.6))
    assert math.isnan(closed_share(0.5, math.nan, 0.6))
    mean, deviation = mean_and_spread([0.25])
    assert mean == 0.25
    assert math.isnan(deviation)
    assert all(math.isnan(number) for number in mean_and_spread([0.25, math.nan]))
    without = summarise({"clean": [0.5, 0.5], "black": [0.1, 0.2]})
    assert math.isnan(without["black"]["closed"][0])
    assert without["black"]["kept"] == pytest.approx((0.3, 0.2 / math.sqrt(2)))


def cells(seeds: list[int]) -> list[dict[str, Any]]:
    """Finished cells, in no order; every set has the APs above."""
    curve = {"recall": [0.5] * 1000, "precision": [1.0] * 1000, "faces": 7}
    made = []
    for variant, aps in APS.items():
        for seed in reversed(seeds):
            sets = dict.fromkeys(("easy", "medium", "hard"), aps[seeds.index(seed)])
            made.append(
                {
                    "variant": variant,
                    "seed": seed,
                    "photos": 1582,
                    "steps": 980,
                    "seconds": 600.0,
                    "points": [
                        {"epoch": 5, "step": 490, "ap": dict.fromkeys(sets, 0.01)},
                        {"epoch": 10, "step": 980, "ap": sets},
                    ],
                    "curves": {name: {**curve, "ap": ap} for name, ap in sets.items()},
                    "provenance": {"commit": f"c0ffee{seed}", "machine": {"cpu": "Some CPU"}},
                }
            )
    return made


def measured(seeds: list[int], minimum: float) -> Measured:
    setup = {
        "preset": "small",
        "overrides": ["train_detector.lr=1e-3"],
        "init": "imagenet",
        "folds": 2,
        "generators": ["a.safetensors", "b.safetensors"],
        "longest_side": 640,
        "training_photos": 1582,
        "training_faces": 5832,
        "train_detector": {"epochs": 10, "frame": 320, "batch_size": 16},
        "output": {"jpeg_quality": 95, "jpeg_subsampling": "4:4:4"},
    }
    return Measured(cells(seeds), list(APS), seeds, "medium", minimum, setup)


def test_tables_hold_mean_and_spread_over_seeds() -> None:
    results = artifact_results(measured([3, 5], minimum=0.6), "300 photos.")
    lines = results.text.splitlines()
    assert lines[0].startswith("Valid: every clean-trained detector reaches the stated AP of 0.6")
    assert "| dartblur | 0.5500 ± 0.0707 | 0.5500 ± 0.0707 | 0.5500 ± 0.0707 |" in lines
    assert "| dartblur | 81.2 ± 26.5 % | 81.2 ± 26.5 % | 81.2 ± 26.5 % |" in lines
    assert "| dartblur | 75.0 ± 35.4 % | 75.0 ± 35.4 % | 75.0 ± 35.4 % |" in lines
    assert "| gaussian | 0.0 ± 0.0 % | 0.0 ± 0.0 % | 0.0 ± 0.0 % |" in lines
    for words in (
        "10 epochs of 1582 photos with 5832 faces",
        "preset small with train_detector.lr=1e-3",
        "a.safetensors and b.safetensors, each on the half",
        "60 minutes for 6 detectors in all, by code of c0ffee3, c0ffee5",
    ):
        assert words in results.text
    assert results.values["valid"] is True
    assert results.values["summary"]["hard"]["dartblur"]["kept"][0] == pytest.approx(0.8125)
    assert results.figures.keys() == {"kept", "learning_curves", "precision_recall"}


def test_one_weak_clean_detector_makes_all_of_it_invalid() -> None:
    """The mean, 0.7, would pass."""
    results = artifact_results(measured([3, 5], minimum=0.65), "300 photos.")
    assert results.text.startswith(
        "**INVALID: a clean-trained detector reaches AP 0.6000 on medium"
    )
    assert results.values["valid"] is False


def test_one_seed_has_no_spread() -> None:
    results = artifact_results(measured([4], minimum=0.0), "300 photos.")
    assert "| dartblur | 0.5000 | 0.5000 | 0.5000 |" in results.text
    assert "| dartblur | 62.5 % | 62.5 % | 62.5 % |" in results.text
    assert "±" not in results.text
    assert "One seed, no spread" in results.text
