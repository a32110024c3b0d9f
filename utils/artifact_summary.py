"""What the AP of detectors, trained on variants of the photos, says about the variants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Spread = tuple[float, float]
"""Mean, and sample standard deviation: NaN of a single value."""

CLEAN, GAUSSIAN = "clean", "gaussian"


def kept_share(ap: float, clean: float) -> float:
    """Share of the clean-trained AP that is kept; NaN where that is 0."""
    return ap / clean if clean > 0 else math.nan


def closed_share(ap: float, gaussian: float, clean: float) -> float:
    """Share of the gap from Gaussian blur to clean that is closed; NaN where there is none."""
    return (ap - gaussian) / (clean - gaussian) if clean > gaussian else math.nan


def mean_and_spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation; NaN among the values makes both NaN."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1))


def summarise(aps: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Spread]]:
    """Mean and spread over seeds of `ap`, `kept` and `closed` (see above), by variant.

    `aps`: by variant the AP of each seed, the seeds in the same order everywhere: shares compare
    detectors of one seed. "clean" must be there; without "gaussian" no gap is known.
    """
    clean = aps[CLEAN]
    gaussian = aps.get(GAUSSIAN, [math.nan] * len(clean))
    return {
        variant: {
            "ap": mean_and_spread(values),
            "kept": mean_and_spread(
                [kept_share(*pair) for pair in zip(values, clean, strict=True)]
            ),
            "closed": mean_and_spread(
                [closed_share(*three) for three in zip(values, gaussian, clean, strict=True)]
            ),
        }
        for variant, values in aps.items()
    }


def spread_text(spread: Spread, percent: bool = False) -> str:
    """Mean ± spread for a table; a dash where nothing is known."""
    mean, deviation = (100 * number if percent else number for number in spread)
    if math.isnan(mean):
        return "–"
    digits = 1 if percent else 4
    unit = " %" if percent else ""
    text = f"{mean:.{digits}f}"
    return f"{text}{unit}" if math.isnan(deviation) else f"{text} ± {deviation:.{digits}f}{unit}"
