#!/usr/bin/env python
"""Faces hidden, faces missed and area hidden needlessly: the curve behind `detect` in config.yaml.

    python tests/benchmarks/recall.py --data data/widerface --figure img/recall.png
    python tests/benchmarks/recall.py --data data/widerface --stride 5      # a quick look

Validation photos with the official labels. Faces flagged invalid are ignored, all others with an
area count, however small. A face is

- hidden, if boxes as they are hidden (enlarged) cover at least 90% of the pixels of its label:
  what matters for privacy, whether one box does it or several;
- found, if a box before it is enlarged overlaps its label by an IoU of at least 0.5.

Needless is the mean share of a photo's pixels that are hidden but lie in no label that is
enlarged by the same factor; strays are hidden boxes that touch no label. Invalid faces are labels
here. Faces that nobody labelled count as needless, too.

Every photo is searched once, with the lowest score; the figures for all scores and settings come
from these finds. Settings are compared on every second photo, and the tables by face height are
made on the others: a choice must not be judged on what it was made from.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torchvision.ops import box_iou
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.anonymize import load_anonymizer
from models.detection import detect_passes, join_passes, pass_sizes, within_reach
from models.weights import DETECTOR
from utils.blur import face_mask
from utils.boxes import Boxes, enlarge, pixel_boxes
from utils.config import load_config
from utils.device import pick_device
from utils.image_files import read_photo
from utils.prediction_files import Detections
from utils.widerface import LabelledPhoto, photo_path, read_labels

LOWEST_SCORE = 0.02
SCORES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
FACTORS = (1.0, 1.1, 1.2, 1.3, 1.4)
HEIGHTS = (0, 10, 16, 24, 40, 80, 160, 320)
COVERED, OVERLAP = 0.9, 0.5
AT_ONCE = 8  # photos


@dataclass(frozen=True)
class Searched:
    """A labelled photo of `height` x `width` px with all finds of all its passes."""

    labels: LabelledPhoto
    height: int
    width: int
    sizes: list[tuple[int, int]]
    passes: list[Detections]


@dataclass(frozen=True)
class Setting:
    """Which passes count: their longest sides relative to the photo's, and what they may find."""

    name: str
    zoom: float
    shortest_pass: int
    largest_face: float = float("inf")
    flip: bool = False
    one_pass: bool = False

    def faces(self, photo: Searched, score: float, nms_iou: float) -> Boxes:
        """The boxes that this setting finds, [N, 4], not enlarged."""
        longest = max(photo.height, photo.width)
        used: list[int] = []
        for place, size in enumerate(photo.sizes):
            zoom = max(size) / longest
            fits = zoom < self.zoom * 1.01 and (max(size) >= self.shortest_pass or not used)
            if fits and not (used and self.one_pass):
                used.append(place)
        mirrored = [place + len(photo.sizes) for place in used] if self.flip else []
        passes = []
        for boxes, scores in (photo.passes[place] for place in used + mirrored):
            passes.append((boxes[scores >= score], scores[scores >= score]))
        sizes = [photo.sizes[place] for place in used]
        return join_passes(within_reach(passes, sizes, longest, self.largest_face), nms_iou)[0]


@dataclass
class Tally:
    """Figures for each face (heights, hidden, found) and each photo (the others)."""

    heights: list[float] = field(default_factory=list)
    hidden: list[bool] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    needless: list[float] = field(default_factory=list)
    strays: list[int] = field(default_factory=list)

    def add(self, photo: Searched, boxes: Boxes, factor: float) -> None:
        """Count the photo with `boxes`, [N, 4], which `factor` enlarges."""
        shape = (photo.height, photo.width)
        has_area = (photo.labels.boxes[:, 2:] > photo.labels.boxes[:, :2]).all(axis=1)
        everyone = photo.labels.boxes[has_area]
        faces = photo.labels.boxes[has_area & ~photo.labels.invalid]
        shown = enlarge(boxes, factor)
        mask = face_mask(shown, *shape) > 0
        allowed = face_mask(enlarge(everyone, factor), *shape) > 0
        self.needless.append(float((mask & ~allowed).mean()))
        self.strays.append(int((overlaps(shown, everyone) == 0).sum()))
        for (x1, y1, x2, y2), face, iou in zip(
            pixel_boxes(faces, *shape).tolist(), faces, overlaps(faces, boxes), strict=True
        ):
            if x2 <= x1 or y2 <= y1:
                continue
            self.heights.append(float(face[3] - face[1]))
            self.hidden.append(bool(mask[y1:y2, x1:x2].mean() >= COVERED))
            self.found.append(bool(iou >= OVERLAP))

    def by_height(self) -> list[tuple[int, float]]:
        """Number of faces and share of them hidden, for each bin of `HEIGHTS`."""
        bins = np.digitize(self.heights, HEIGHTS) - 1
        hidden = np.array(self.hidden)
        return [
            (int((bins == index).sum()), float(hidden[bins == index].mean()))
            if (bins == index).any()
            else (0, float("nan"))
            for index in range(len(HEIGHTS))
        ]


def overlaps(boxes: Boxes, others: Boxes) -> NDArray[np.float64]:
    """The highest IoU of each box, [N, 4], with one of the others, [M, 4]; 0 where M is 0."""
    iou = box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()
    return np.asarray(iou.max(axis=1, initial=0.0))


def search(
    weights: Path, photos: Sequence[LabelledPhoto], options: argparse.Namespace
) -> list[Searched]:
    """Search all photos with the detector in `weights`, as config.yaml says but for the score."""
    config = load_config(overrides=options.set)
    numbers = config["detect"]
    limits = {key: numbers[key] for key in ("zoom", "longest_side", "shortest_pass")}
    device = pick_device(options.device)
    detector = load_anonymizer("black", config, device, detector=weights).detector
    assert detector is not None
    searched = []
    for start in tqdm(range(0, len(photos), AT_ONCE), desc=weights.name, unit="batch"):
        batch = photos[start : start + AT_ONCE]
        folder = options.data / "val" / "images"
        images = [read_photo(photo_path(folder, photo.path)).pixels for photo in batch]
        sizes = [pass_sizes(*image.shape[:2], **limits) for image in images]
        with torch.inference_mode():
            found = detect_passes(
                detector, images, sizes, LOWEST_SCORE, numbers["nms_iou"], numbers["flip"]
            )
        searched += [
            Searched(photo, image.shape[0], image.shape[1], passes, detections)
            for photo, image, passes, detections in zip(batch, images, sizes, found, strict=True)
        ]
    return searched


def tally(
    photos: Sequence[Searched], setting: Setting, score: float, factor: float, nms_iou: float
) -> Tally:
    """The figures of one setting."""
    result = Tally()
    for photo in photos:
        result.add(photo, setting.faces(photo, score, nms_iou), factor)
    return result


def settings_of(numbers: Mapping[str, Any]) -> list[Setting]:
    """The passes to compare, the configured ones last; `numbers`: the section `detect`."""
    zoom, shortest, largest = (numbers[key] for key in ("zoom", "shortest_pass", "largest_face"))
    settings = [
        Setting("own size alone", 1, 0, one_pass=True),
        Setting("own size, halves to 320 px, faces of any size", 1, 320),
        Setting(f"own size, halves, faces to {largest:g} px", 1, shortest, largest),
        Setting(f"from {zoom:g} times the size, faces of any size", zoom, shortest),
        Setting(f"from {zoom:g} times the size, faces to {largest:g} px", zoom, shortest, largest),
    ]
    if numbers["flip"]:
        settings.append(Setting("the same, mirrored too", zoom, shortest, largest, flip=True))
    return settings


def compared(tallies: Mapping[str, Mapping[float, Tally]], scores: Sequence[float]) -> str:
    """A table of settings by scores."""
    lines = ["| passes | " + " | ".join(f"{score:g}" for score in scores) + " |"]
    lines.append("|---" * (len(scores) + 1) + "|")
    for name, by_score in tallies.items():
        cells = [
            f"{np.mean(each.hidden):.1%} / {np.mean(each.needless):.1%} "
            f"/ {np.mean(each.strays):.1f}"
            for each in by_score.values()
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_height_table(rows: Mapping[str, Tally]) -> str:
    """A table of share hidden by face height."""
    ends = [f"{low}–{high}" for low, high in itertools.pairwise(HEIGHTS)]
    names = [*ends, f"{HEIGHTS[-1]}+"]
    counts = next(iter(rows.values())).by_height()
    titles = [f"{name} px ({count})" for name, (count, _) in zip(names, counts, strict=True)]
    lines = [
        "| score | " + " | ".join(titles) + " | all | found | needless | strays |",
        "|---" * (len(names) + 5) + "|",
    ]
    for name, each in rows.items():
        cells = [f"{share:.1%}" if count else "" for count, share in each.by_height()]
        cells += [f"{np.mean(each.hidden):.1%}", f"{np.mean(each.found):.1%}"]
        cells += [f"{np.mean(each.needless):.1%}", f"{np.mean(each.strays):.1f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(
    by_score: Mapping[float, Tally], tallies: Mapping[str, Mapping[float, Tally]], chosen: float
) -> Figure:
    """Left: share hidden over face height. Right: over the area hidden needlessly."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    places = np.arange(len(HEIGHTS))
    for score, each in by_score.items():
        shares = [100 * share for _, share in each.by_height()]
        width = 2.5 if score == chosen else 1.2
        left.plot(places, shares, marker="o", markersize=3, linewidth=width, label=f"{score:g}")
    left.set_xticks(places, [f"{height}+" for height in HEIGHTS])
    left.set(xlabel="face height, px", ylabel="faces hidden, %", ylim=(0, 102))
    left.legend(title="score")
    for (name, points), marker in zip(tallies.items(), "osv^DP", strict=False):
        x = [100 * float(np.mean(each.needless)) for each in points.values()]
        y = [100 * float(np.mean(each.hidden)) for each in points.values()]
        right.plot(x, y, marker=marker, markersize=4, label=name)
        if chosen in points:
            place = list(points).index(chosen)
            right.plot(x[place], y[place], "o", markersize=10, fillstyle="none", color="black")
    right.set(xlabel="area hidden needlessly, % of a photo", ylabel="faces hidden, %")
    right.set(xscale="log", ylim=(0, 102))
    ticks = (1, 2, 5, 10, 20, 50, 100)
    right.set_xticks(ticks, [str(tick) for tick in ticks])
    right.set_xticks([], minor=True)
    right.legend(fontsize=7, title=f"passes (circles: score {chosen:g})", title_fontsize=7)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def main() -> None:
    """Parse, search, print the tables, draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/widerface"))
    parser.add_argument("--detector", type=Path, default=DETECTOR)
    parser.add_argument("--yardstick", type=Path, help="another detector, for one more table")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th photo")
    parser.add_argument("--figure", type=Path, help="where to draw the curves")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    options = parser.parse_args()
    labels = read_labels(options.data / "wider_face_split" / "wider_face_val_bbx_gt.txt")
    folder = options.data / "val" / "images"
    present = [photo for photo in labels if photo_path(folder, photo.path).is_file()]
    photos = present[:: options.stride]
    halves = (
        search(options.detector, photos[::2], options),
        search(options.detector, photos[1::2], options),
    )
    report(*halves, options)
    if options.yardstick:
        yardstick = search(options.yardstick, photos[1::2], options)
        numbers = load_config(overrides=options.set)["detect"]
        setting = settings_of(numbers)[-1]
        print(f"\n{options.yardstick.name} on the other half")
        rows = {
            f"{score:g}": tally(yardstick, setting, score, numbers["enlarge"], numbers["nms_iou"])
            for score in SCORES
        }
        print(by_height_table(rows))


def report(
    chosen_on: Sequence[Searched], judged_on: Sequence[Searched], options: argparse.Namespace
) -> None:
    """Print what the choice was made from, and how the choice does on the other photos."""
    numbers = load_config(overrides=options.set)["detect"]
    iou, factor, default = numbers["nms_iou"], numbers["enlarge"], numbers["score"]
    settings = settings_of(numbers)

    print(
        f"Choosing on {len(chosen_on)} photos, boxes enlarged {factor:g} times: "
        "hidden / needless / strays"
    )
    tallies = {
        setting.name: {score: tally(chosen_on, setting, score, factor, iou) for score in SCORES}
        for setting in settings
    }
    print(compared(tallies, SCORES))
    print(f"\n{settings[-1].name}, score {default:g}, enlarged by")
    by_factor = {f: tally(chosen_on, settings[-1], default, f, iou) for f in FACTORS}
    print(compared({"hidden / needless / strays": by_factor}, FACTORS))

    print(f"\n{settings[-1].name}, on the other {len(judged_on)} photos: share hidden")
    judged = {
        setting.name: {score: tally(judged_on, setting, score, factor, iou) for score in SCORES}
        for setting in (settings if options.figure else settings[-1:])
    }
    by_score = judged[settings[-1].name]
    print(by_height_table({f"{score:g}": each for score, each in by_score.items()}))
    if options.figure:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        draw(by_score, judged, default).savefig(options.figure, dpi=100)


if __name__ == "__main__":
    main()
