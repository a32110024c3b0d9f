"""Figures of the evaluation. They need Matplotlib, which only evaluation installs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from utils.blur import Pixels
from utils.wider_protocol import PrecisionRecall

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def precision_recall_figure(curves: Mapping[str, PrecisionRecall], title: str) -> Figure:
    """Draw precision over recall, one line for each labelled curve, with its AP."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for label, curve in curves.items():
        drawn = curve.recall > 0  # before the first find there is no precision to speak of
        axes.plot(curve.recall[drawn], curve.precision[drawn], label=f"{label}, AP {curve.ap:.3f}")
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def bars_figure(
    bars: Mapping[str, Mapping[str, tuple[float, float]]], ylabel: str, title: str
) -> Figure:
    """Draw a group of bars for each key, one for each key inside it, with error bars.

    A bar is (value, half length of its error bar); NaN for a bar or an error that is not known.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 1.1 * len(bars) + 1), 4), layout="constrained")
    axes = figure.subplots()
    series = list(dict.fromkeys(name for group in bars.values() for name in group))
    width = 0.8 / len(series)
    for index, name in enumerate(series):
        places = np.arange(len(bars)) + (index - (len(series) - 1) / 2) * width
        values, errors = zip(
            *(group.get(name, (math.nan,) * 2) for group in bars.values()), strict=True
        )
        axes.bar(places, values, width, label=name, yerr=errors, capsize=3)
    axes.set_xticks(range(len(bars)), list(bars), rotation=20, ha="right")
    axes.set(ylabel=ylabel, title=title)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend()
    return figure


def learning_curves_figure(
    curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
    xlabel: str,
    ylabel: str,
    title: str,
) -> Figure:
    """Draw for each label the mean of its curves, and the band from the lowest to the highest.

    A curve is its points (x, y); those of one label share their x.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for label, several in curves.items():
        points = np.array(several, dtype=np.float64)  # [curves, points, 2]
        x, y = points[0, :, 0], points[:, :, 1]
        axes.plot(x, y.mean(axis=0), marker="o", markersize=4, label=label)
        if len(several) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), alpha=0.2)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def histogram_figure(
    values: Mapping[str, Sequence[float]], limit: float, xlabel: str, title: str
) -> Figure:
    """Draw how often each labelled value occurs, and a line at `limit`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    every = [value for several in values.values() for value in several]
    edges = np.linspace(0, max([limit, *every]) * 1.05, 41).tolist()
    for label, several in values.items():
        axes.hist(several, bins=edges, alpha=0.6, label=label)
    axes.axvline(limit, color="black", linestyle="--", label=f"{limit:g}")
    axes.set(xlabel=xlabel, ylabel="photos", title=title)
    axes.legend()
    return figure


def scatter_figure(
    points: Mapping[str, tuple[float, float]], xlabel: str, ylabel: str, title: str
) -> Figure:
    """Draw a labelled point (x, y) for each key; x and y are shares, 0-1."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axes = figure.subplots()
    for label, (x, y) in points.items():
        axes.scatter([x], [y], s=40)
        axes.annotate(label, (x, y), xytext=(5, 5), textcoords="offset points")
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(xmax=1))
    axes.margins(0.15)
    axes.grid(alpha=0.3)
    return figure


def pictures_figure(columns: Sequence[str], rows: Sequence[Sequence[Pixels]]) -> Figure:
    """Draw pictures, uint8 [H, W, 3] RGB, in rows under the headings `columns`."""
    from matplotlib.figure import Figure

    shapes = [row[0].shape for row in rows]
    width = 1.6 * len(columns)
    height = sum(1.6 * shape[0] / shape[1] for shape in shapes)
    figure = Figure(figsize=(width, height + 0.4), layout="constrained")
    cells = figure.subplots(
        len(rows),
        len(columns),
        squeeze=False,
        gridspec_kw={"height_ratios": [shape[0] / shape[1] for shape in shapes]},
    )
    for line, pictures in zip(cells, rows, strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            axes.imshow(picture)
            axes.set_axis_off()
    for axes, heading in zip(cells[0], columns, strict=True):
        axes.set_title(heading, fontsize=8)
    return figure
