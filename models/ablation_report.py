"""Tables and figures of the ablation, from what its generators and detectors have left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.ablation_cells import FULL, LAST_STEPS
from models.artifact_report import Measured, verdict
from models.objectives import OBJECTIVES
from utils.artifact_summary import Spread, mean_and_spread, spread_text, summarise
from utils.plots import bars_figure
from utils.results import Results, markdown_table
from utils.wider_protocol import DIFFICULTIES

Key = tuple[str, int]
"""Row and seed."""

SHARES = {"kept": "Share of the clean AP kept", "closed": "Share of the gap from Gaussian closed"}


TELLING_SHARE = 0.1
"""Share of the gap that the whole recipe must close for the detectors' table to rank its parts."""


@dataclass(frozen=True)
class Ablation:
    """What was measured.

    detectors: of every row; rows that share a generator share a detector, too.
    generators: `generator.json` (`models.ablation_cells.run_generator`) of the trained ones.
    reviews: `review.json` (`models.ablation_cells.run_review`) of these and of the start.
    twins: the first row of the seed with the same weights.
    """

    detectors: Measured
    generators: Mapping[Key, Mapping[str, Any]]
    reviews: Mapping[Key, Mapping[str, Any]]
    twins: Mapping[Key, str]

    def spread(self, row: str, table: Mapping[Key, Mapping[str, Any]], name: str) -> Spread:
        """Mean and spread over seeds of one number; NaN where it is not known."""
        values = [table.get((row, seed), {}).get(name) for seed in self.detectors.seeds]
        return mean_and_spread([math.nan if value is None else value for value in values])


def ablation_results(ablation: Ablation, data: str) -> Results:
    """All that is written of the measurement; `data`: what was tested on, in words."""
    detectors = ablation.detectors
    summary = {name: summarise(detectors.aps(name)) for name in DIFFICULTIES}
    doubt = "" if detectors.is_valid else " (INVALID)"
    return Results(
        title="Ablation: generators trained without one part of the recipe",
        data=data,
        seeds=detectors.seeds,
        values={
            "valid": detectors.is_valid,
            "minimum_clean_ap": {detectors.judged: detectors.minimum_clean_ap},
            "setup": detectors.setup,
            "summary": summary,
            "generators": [
                {
                    "row": row,
                    "seed": seed,
                    "same_weights_as": twin if twin != row else None,
                    **{name: value for name, value in trained.items() if name != "provenance"},
                    "commit": trained["provenance"]["commit"],
                }
                for (row, seed), trained in ablation.generators.items()
                for twin in [ablation.twins[row, seed]]
            ],
            "reviews": [
                {"row": row, "seed": seed, **review}
                for (row, seed), review in ablation.reviews.items()
            ],
            "detectors": [
                {
                    **{name: cell[name] for name in ("variant", "seed", "steps", "seconds")},
                    "ap": cell["points"][-1]["ap"],
                    "commit": cell["provenance"]["commit"],
                }
                for cell in detectors.cells
            ],
        },
        text=markdown(ablation, summary),
        figures={
            **{
                share: bars_figure(
                    {
                        row: {name: summary[name][row][share] for name in DIFFICULTIES}
                        for row in detectors.variants
                    },
                    "share",
                    heading + doubt,
                )
                for share, heading in SHARES.items()
            },
            "distance": bars_figure(
                {
                    row: {"S": ablation.spread(row, ablation.reviews, "smooth_l1")}
                    for row in dict.fromkeys(row for row, _ in ablation.reviews)
                },
                "grey levels",
                "Distance S to the blur",
            ),
        },
    )


def markdown(ablation: Ablation, summary: Mapping[str, Mapping[str, Mapping[str, Spread]]]) -> str:
    """The verdict, a table of the detectors, one of the generators, and how it was measured."""
    detectors = ablation.detectors
    judged = detectors.judged
    budget = detectors.setup["train_generator"]["review_budget"]
    header = ["trained on", *(f"AP {name}" for name in DIFFICULTIES)]
    header += [f"clean AP kept, {judged}", f"gap closed, {judged}"]
    rows = [
        [
            row,
            *(spread_text(summary[name][row]["ap"]) for name in DIFFICULTIES),
            *(spread_text(summary[judged][row][share], percent=True) for share in SHARES),
        ]
        for row in detectors.variants
    ]
    ends = ["S", "S, 95th percentile", f"S at most {budget:g}"]
    reviewed = [
        [
            row,
            _number(ablation.spread(row, ablation.reviews, "smooth_l1")),
            _number(ablation.spread(row, ablation.reviews, "smooth_l1_p95")),
            spread_text(ablation.spread(row, ablation.reviews, "within_budget"), percent=True),
            *(_number(ablation.spread(row, _losses(ablation), name)) for name in OBJECTIVES),
        ]
        for row in dict.fromkeys(row for row, _ in ablation.reviews)
    ]
    return "\n\n".join(
        [
            verdict(detectors),
            *_floor_remarks(ablation),
            "**Detectors, tested on clean photos**",
            markdown_table(header, rows),
            "**Generators**",
            markdown_table(["generator", *ends, *(f"L_{name}" for name in OBJECTIVES)], reviewed),
            *_remarks(ablation),
        ]
    )


def _losses(ablation: Ablation) -> dict[Key, Mapping[str, Any]]:
    return {key: trained["losses"] for key, trained in ablation.generators.items()}


def _number(spread: Spread) -> str:
    """Two digits behind the point; a dash where nothing is known."""
    mean, deviation = spread
    if math.isnan(mean):
        return "–"
    return f"{mean:.2f}" if math.isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


def _remarks(ablation: Ablation) -> list[str]:
    detectors = ablation.detectors
    setup, seeds = detectors.setup, len(detectors.seeds)
    recipe, detector, output = (
        setup[name] for name in ("train_generator", "train_detector", "output")
    )
    changed = f" with {', '.join(setup['overrides'])}" if setup["overrides"] else ""
    spread = (
        "Mean ± sample standard deviation over the seeds."
        if seeds > 1
        else "One seed: how far a row would move with another is not known, so that small "
        "differences between rows mean nothing."
    )
    trained = list(ablation.generators.values())
    steps = max(trained, key=lambda one: sum(one["steps"].values()))["steps"]
    measured = {(cell["variant"], cell["seed"]): cell for cell in detectors.cells}
    own = [cell for key, cell in measured.items() if ablation.twins.get(key, key[0]) == key[0]]
    seconds = [sum(one["seconds"] for one in several) for several in (trained, own)]
    photos, faces = setup["photos"], setup["faces"]
    reviewed = next(iter(ablation.reviews.values()))["photos"]
    commits = {one["provenance"]["commit"] for one in [*trained, *own]}
    return [
        f"{spread} Shares compare detectors of one seed.",
        f"Size: preset {setup['preset']}{changed}. Every generator goes on from "
        f"{setup['init_generator']} (row `start`) for "
        f"{' and '.join(f'{count} {kind} steps' for kind, count in steps.items())}, batches of "
        f"{recipe['batch_size']} at {recipe['frame']} px, on {photos['generator']} training photos "
        f"with {faces['generator']} faces; critic {setup['critic']}. It then redraws "
        f"{photos['detector']} others with {faces['detector']} faces, on which a RetinaFace "
        f"MobileNet x0.25 is trained from ImageNet weights of its backbone: "
        f"{own[0]['steps']} steps in {detector['epochs']} epochs, batches of "
        f"{detector['batch_size']} crops of {detector['frame']} px. The last weights are tested, "
        f"at a longest side of {setup['longest_side']} px. Boxes are hidden where the labels say; "
        f"every row's photos are coded as dartblur.py codes its copies (JPEG "
        f"{output['jpeg_quality']}, {output['jpeg_subsampling']}).",
        "S: distance inside the boxes to the coded blur, which the generator is given, in grey "
        f"levels; mean over {reviewed} validation photos, and the share of them within the "
        f"review budget. Losses: means of the last {LAST_STEPS} generator steps; those with the "
        "adversary are measured against each row's own, and L_rev is what S exceeds the budget "
        "by.",
        *_twin_remarks(ablation),
        *_budget_remarks(ablation),
        f"Training took {seconds[0] / 60:.0f} minutes for {len(trained)} generators and "
        f"{seconds[1] / 60:.0f} for {len(own)} detectors, all jobs added up, by code of "
        f"{', '.join(sorted(commits))}.",
    ]


def _floor_remarks(ablation: Ablation) -> list[str]:
    """A warning where the whole recipe is too near to plain blur for its parts to be told apart."""
    detectors = ablation.detectors
    closed = summarise(detectors.aps(detectors.judged))[FULL]["closed"][0]
    if closed >= TELLING_SHARE:
        return []
    reason = (
        "between Gaussian blur and clean photos there is no gap"
        if math.isnan(closed)
        else f"the whole recipe closes {spread_text((closed, math.nan), percent=True)} of the gap"
    )
    return [
        f"**Nothing to rank: {reason} on {detectors.judged}. Below {TELLING_SHARE:.0%} the "
        "detectors cannot tell what a part is worth; the table of the generators says how those "
        "differ.**"
    ]


def _twin_remarks(ablation: Ablation) -> list[str]:
    """Which generators are the same, bit for bit."""
    same = [
        f"`{row}` and `{twin}` (seed {seed})"
        for (row, seed), twin in ablation.twins.items()
        if row != twin
    ]
    if not same:
        return []
    return [
        f"The same weights to the bit, and so one detector for both: {'; '.join(same)}. "
        "`without-second-order` and `without-cycl` have to be: without the second-order term "
        "L_cycl has no gradient."
    ]


def _budget_remarks(ablation: Ablation) -> list[str]:
    """Whether L_rev had anything to say in the whole recipe."""
    whole = [one for (row, _), one in ablation.generators.items() if row == FULL]
    held = [one["rev_steps"] for one in whole if one["rev_steps"] is not None]
    if not held:
        return []
    steps = sum(one["steps"]["generator"] for one in whole)
    return [
        f"In the whole recipe L_rev was above 0 on {sum(held)} of {steps} generator steps; on all "
        "others every photo of the batch was within the budget, and it had no gradient."
    ]
