"""Privacy against utility: what each way to hide faces costs, and what it buys.

Joins two results that are there already: how much of the clean-trained AP detectors keep that learn
from the anonymised photos (`artifacts`), and how many people the best attack recognises on them
(`privacy`). Variants that only one of them measured are named and left out.

    python evaluate.py tradeoff --artifacts results/artifacts_small --privacy results/privacy
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from utils.plots import scatter_figure
from utils.provenance import path_text, provenance
from utils.results import Results, markdown_table, write_results
from utils.wider_protocol import DIFFICULTIES


class TradeoffError(Exception):
    """Results that cannot be joined; the message is one line."""


PACKAGES = ("matplotlib",)
"""The distributions, beside those of requirements.txt, that the command needs."""

ERRORS = (OSError, TradeoffError)
"""What `run` raises; all with one-line messages."""

JUDGED = "medium"
"""The set whose AP the figure shows."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `run` reads beside `output` and `name`."""
    for name in ("artifacts", "privacy"):
        parser.add_argument(
            f"--{name}",
            type=Path,
            default=Path("results") / name,
            metavar="DIR",
            help="folder of those results (%(default)s)",
        )


def run(options: argparse.Namespace) -> None:
    """Join the results and write them. Raises one of `ERRORS`."""
    artifacts, privacy = (
        read_results(folder, key)
        for folder, key in ((options.artifacts, "summary"), (options.privacy, "rows"))
    )
    kept = {
        name: {
            variant: values["kept"][0]
            for variant, values in artifacts["results"]["summary"][name].items()
        }
        for name in DIFFICULTIES
    }
    attacks = best_attacks(privacy["results"]["rows"])
    both = [variant for variant in kept[JUDGED] if variant in attacks]
    if not both:
        raise TradeoffError(
            f"{options.artifacts} and {options.privacy} have no variant in common; "
            "measure the same ones"
        )
    left_out = sorted((set(kept[JUDGED]) | set(attacks)) - set(both))
    rows = [
        [
            variant,
            *(_percent(kept[name][variant]) for name in DIFFICULTIES),
            _percent(attacks[variant]["rank1"]),
            attacks[variant]["attack"],
        ]
        for variant in both
    ]
    header = ["variant", *(f"AP kept, {name}" for name in DIFFICULTIES)]
    header += ["rank-1 of the best attack", "which"]
    remarks = [
        f"AP kept: by detectors that learnt from the variant, of the clean-trained AP "
        f"({path_text(options.artifacts)}: {artifacts['data']}) Recognised: "
        f"{path_text(options.privacy)}: {privacy['data']}"
    ]
    if not artifacts["results"]["valid"]:
        remarks.insert(0, "**INVALID: the clean-trained detectors are too weak to compare with.**")
    if left_out:
        remarks.append(f"Measured by one of the two only, and left out: {', '.join(left_out)}.")
    points = {
        variant: (_number(kept[JUDGED][variant]), attacks[variant]["rank1"]) for variant in both
    }
    results = Results(
        title="Privacy against utility",
        data=f"Two results, of commits {artifacts['provenance']['commit']} and "
        f"{privacy['provenance']['commit']}.",
        seeds=sorted({*artifacts["seeds"], *privacy["seeds"]}),
        values={"kept": kept, "attacks": attacks, "variants": both},
        text="\n\n".join([markdown_table(header, rows), *remarks]),
        figures={
            "tradeoff": scatter_figure(
                points,
                f"share of the clean AP kept, {JUDGED}",
                "rank-1 of the best attack",
                "Best is right and low",
            )
        },
    )
    folder = options.output / options.name
    write_results(folder, results, provenance(PACKAGES))
    print(f"{folder / 'results.md'}: {len(both)} variants")


def read_results(folder: Path, key: str) -> dict[str, Any]:
    """What an evaluation has left in `folder`. Raises `TradeoffError` where `key` is missing."""
    file = folder / "results.json"
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        record["data"], record["seeds"], record["provenance"]["commit"], record["results"][key]
    except FileNotFoundError:
        raise TradeoffError(f"{file}: no such file; run that evaluation first") from None
    except (ValueError, KeyError, TypeError):
        raise TradeoffError(f"{file}: not the results of that evaluation") from None
    return record


def best_attacks(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By variant, the attack that recognises most people, and its rank-1 rate."""
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        rate = row["rank1"][0]
        held = best.get(row["variant"])
        if held is None or rate > held["rank1"]:
            best[row["variant"]] = {"attack": row["attack"], "rank1": rate}
    return best


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
