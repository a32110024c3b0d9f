"""The tables and the figure of the privacy measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from utils.plots import bars_figure
from utils.results import Results, markdown_table

ATTACKS = {
    "naive": ("as it is", "clean"),
    "same tool": ("as it is", "as it is"),
    "restored": ("restored", "clean"),
    "both restored": ("restored", "restored"),
}
"""Probe and gallery of each attack; "as it is" is anonymised and coded, nothing more."""

FARS = (0.01, 0.001)


def tar_key(far: float) -> str:
    """Name of a true accept rate among the values of a row."""
    return f"tar_at_far_{far:g}"


def privacy_results(values: Mapping[str, Any], data: str, seed: int) -> Results:
    """What `models.privacy_evaluation.measure` found, to be written; `data`: where the photos are.

    The error bars of the figure have half the length of the intervals, which may be lopsided.
    """
    bars: dict[str, dict[str, tuple[float, float]]] = {}
    for row in values["rows"]:
        value, low, high = (100 * number for number in row["rank1"])
        bars.setdefault(row["variant"], {})[row["attack"]] = (value, (high - low) / 2)
    return Results(
        title="Privacy: who is recognised on anonymised and on restored photos",
        data=data,
        seeds=[seed],
        values=values,
        text=markdown(values),
        figures={"rank1": bars_figure(bars, "rank-1 identification, %", "Privacy")},
    )


def markdown(values: Mapping[str, Any]) -> str:
    """The tables, and how they were measured."""
    rows = values["rows"]
    header = ["variant", "attack", "probe", "gallery", "rank-1"]
    header += [f"TAR at FAR {100 * far:g} %" for far in FARS]
    keys = ["rank1", *(tar_key(far) for far in FARS)]
    recognition = [
        [row["variant"], row["attack"], *ATTACKS[row["attack"]]]
        + [percent(row[key]) for key in keys]
        for row in rows
    ]
    quality = [
        [one["variant"]]
        + [f"{one[when][key]:.1f}" for key in ("l1", "psnr") for when in ("before", "after")]
        for one in values["restorations"]
    ]
    setup, first = values["setup"], rows[0]
    photos = setup["photos_each"]
    sources = ", ".join(
        f"{what} from " + " and ".join(f"{source} ({n} photos)" for source, n in by.items())
        for what, by in (("boxes", setup["box_from"]), ("landmarks", setup["landmarks_from"]))
    )
    remarks = [
        f"{first['people']} people, {photos} photos each; rates in per cent, in brackets 95 % "
        "intervals (percentiles of a bootstrap over people). Each photo number in turn is the "
        f"gallery, one photo a person, and the others are probes: a row has "
        f"{first['identifications']} identifications (a guess is right in "
        f"{1 / first['people']:.1%}) and {first['impostor_pairs']} pairs of different people.",
        f"Boxes and landmarks come from the clean photo for every variant: {sources}. Every "
        "variant, the clean one too, is coded as dartblur.py codes its copies. Kernel of the "
        f"Gaussian blur: {setup['kernel_factor']:g} of the box side; strong: "
        f"{setup['strong_kernel_factor']:g}.",
        f"Restored: by a U-Net for each variant, {setup['steps']} steps on "
        f"{photos * setup['training_people']} photos of {setup['training_people']} other people of "
        f"LFW and {setup['training_faces_wider']} faces of WIDER FACE; all of this page took "
        f"{setup['cpu_minutes']:.0f} minutes of processor time. On the test people, inside the "
        "boxes, against the clean photo (mean L1 in grey levels, PSNR in dB):",
    ]
    return "\n\n".join(
        [
            markdown_table(header, recognition),
            *remarks,
            markdown_table(
                ["variant", "L1 before", "L1 after", "PSNR before", "PSNR after"], quality
            ),
        ]
    )


def percent(rate: Sequence[float]) -> str:
    """A rate with its interval, in per cent."""
    value, low, high = (100 * number for number in rate)
    return f"{value:.1f} ({low:.1f}–{high:.1f})"
