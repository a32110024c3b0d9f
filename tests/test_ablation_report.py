"""The tables of the ablation, from records written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from models.ablation_report import Ablation, ablation_results
from models.artifact_report import Measured
from utils.results import Results

# By seed. Closed by `full`: 0.3 / 0.6 = 0.5 and 0.5 / 0.5 = 1, mean 0.75.
APS = {
    "clean": [0.8, 0.6],
    "gaussian": [0.2, 0.1],
    "start": [0.2, 0.1],
    "full": [0.5, 0.6],
    "without-rev": [0.5, 0.6],
    "without-proc": [0.4, 0.3],
}
ROWS = list(APS)[3:]
SEEDS = [3, 5]
PLACE = {"commit": "c0ffee"}


def detector(row: str, index: int, aps: dict[str, list[float]]) -> dict[str, Any]:
    sets = dict.fromkeys(("easy", "medium", "hard"), aps[row][index])
    point = {"epoch": 16, "step": 320, "ap": sets}
    known = {"variant": row, "seed": SEEDS[index], "steps": 320, "seconds": 60.0}
    return {**known, "points": [point], "provenance": PLACE}


def generator(row: str) -> dict[str, Any]:
    left_out = row.removeprefix("without-")
    losses = {name: None if name == left_out else 1.5 for name in ("rev", "proc", "post", "cycl")}
    return {
        "photos": 320,
        "steps": {"moments": 20, "generator": 80},
        "seconds": 120.0,
        "losses": losses,
        "rev_steps": None if left_out == "rev" else 7,
        "provenance": PLACE,
    }


def report(aps: dict[str, list[float]], minimum: float = 0.5) -> Results:
    setup = {
        "preset": "small",
        "overrides": [],
        "init_generator": "a.safetensors",
        "critic": "b.safetensors",
        "longest_side": 640,
        "photos": {"generator": 320, "detector": 318},
        "faces": {"generator": 1132, "detector": 1224},
        "train_generator": {"review_budget": 20.0, "frame": 192, "batch_size": 4},
        "train_detector": {"epochs": 16, "frame": 224, "batch_size": 16},
        "output": {"jpeg_quality": 95, "jpeg_subsampling": "4:4:4"},
    }
    cells = [detector(row, index, aps) for row in APS for index in (0, 1)]
    keys = [(row, seed) for seed in SEEDS for row in ROWS]
    return ablation_results(
        Ablation(
            Measured(cells, list(APS), SEEDS, "medium", minimum, setup),
            {(row, seed): generator(row) for row, seed in keys},
            {
                (row, seed): {
                    "photos": 50,
                    "smooth_l1": 10.0 + seed,
                    "smooth_l1_p95": 20.0,
                    "within_budget": 0.5,
                }
                for seed in SEEDS
                for row in ["start", *ROWS]
            },
            {
                **{(row, seed): row for row, seed in keys},
                ("without-rev", 5): "full",
            },
        ),
        "300 photos.",
    )


def test_tables_hold_mean_and_spread_over_seeds() -> None:
    results = report(APS)
    lines = results.text.splitlines()
    assert lines[0].startswith("Valid: every clean-trained detector reaches the stated AP of 0.5")
    three = "0.5500 ± 0.0707 | " * 3
    assert f"| full | {three}81.2 ± 26.5 % | 75.0 ± 35.4 % |" in lines
    assert "| generator | S | S, 95th percentile | S at most 20 |" in results.text
    reviewed = "14.00 ± 1.41 | 20.00 ± 0.00 | 50.0 ± 0.0 %"
    assert f"| start | {reviewed} | – | – | – | – |" in lines
    loss = "1.50 ± 0.00"
    assert f"| without-proc | {reviewed} | {loss} | – | {loss} | {loss} |" in lines
    for words in (
        "20 moments steps and 80 generator steps, batches of 4 at 192 px, on 320 training photos",
        "redraws 318 others with 1224 faces",
        "320 steps in 16 epochs, batches of 16 crops of 224 px",
        "`without-rev` and `full` (seed 5)",
        "L_rev was above 0 on 14 of 160 generator steps",
        # 12 detectors, but for the one that is shared
        "12 minutes for 6 generators and 11 for 11 detectors",
    ):
        assert words in results.text
    assert "Nothing to rank" not in results.text
    same = {
        (entry["row"], entry["seed"]): entry["same_weights_as"]
        for entry in results.values["generators"]
    }
    assert [key for key, twin in same.items() if twin] == [("without-rev", 5)]
    assert results.figures.keys() == {"kept", "closed", "distance"}


@pytest.mark.parametrize(("full", "says_so"), [([0.25, 0.14], True), ([0.3, 0.2], False)])
def test_parts_of_a_recipe_that_closes_nothing_are_not_ranked(
    full: list[float], says_so: bool
) -> None:
    """0.05 / 0.6 and 0.04 / 0.5 are 8.2 % in the mean, 0.1 / 0.6 and 0.1 / 0.5 are 18.3 %."""
    text = report({**APS, "full": full}).text
    assert ("Nothing to rank" in text) is says_so
    assert ("closes 8.2 % of the gap on medium" in text) is says_so


def test_a_weak_clean_detector_makes_it_invalid() -> None:
    results = report(APS, minimum=0.65)
    assert results.text.startswith("**INVALID: a clean-trained detector reaches AP 0.6000")
    assert results.values["valid"] is False


def test_without_a_gap_nothing_is_ranked() -> None:
    text = report({**APS, "gaussian": [0.8, 0.6]}).text
    assert "Nothing to rank: between Gaussian blur and clean photos there is no gap" in text
