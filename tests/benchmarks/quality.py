#!/usr/bin/env python
"""How the redrawn faces compare with plain Gaussian blur, on labelled validation photos.

    python tests/benchmarks/quality.py --data data/widerface --photos 300

Prints, for clean, Gaussian and DartBlur pixels before the output is coded:

- the step at the box border: mean absolute difference, in grey levels, between the outermost
  pixels inside a face box and their neighbours outside, averaged over faces with sides of at
  least 16 px that no other box touches;
- the mean absolute difference to the clean face inside the boxes;
- for DartBlur, the smooth-L1 distance S to the coded Gaussian blur per photo (the quantity that
  the training holds under its budget): mean, 95th percentile, share of photos within the budget.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.anonymize import load_anonymizer
from models.weights import GENERATOR
from utils.blur import face_mask
from utils.boxes import pixel_boxes, usable
from utils.config import load_config
from utils.device import pick_device
from utils.face_dataset import validation_source
from utils.image_files import jpeg_coded, read_photo
from utils.widerface import photo_path

SMALLEST = 16


def border_step(pixels: np.ndarray, box: np.ndarray) -> float:
    """Mean absolute difference across the four sides of an int box (x1, y1, x2, y2)."""
    x1, y1, x2, y2 = box.tolist()
    values = pixels.astype(np.int64)
    sides = [
        (values[y1, x1:x2], values[y1 - 1, x1:x2]),
        (values[y2 - 1, x1:x2], values[y2, x1:x2]),
        (values[y1:y2, x1], values[y1:y2, x1 - 1]),
        (values[y1:y2, x2 - 1], values[y1:y2, x2]),
    ]
    return float(np.concatenate([np.abs(a - b).ravel() for a, b in sides]).mean())


def lone_boxes(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixel boxes with a pixel of photo all around that no other box touches: int [N, 4]."""
    corners = pixel_boxes(boxes, height, width)
    kept = []
    for index, (x1, y1, x2, y2) in enumerate(corners.tolist()):
        others = face_mask(np.delete(boxes, index, axis=0), height, width)
        inside = x1 > 0 and y1 > 0 and x2 < width and y2 < height
        large = min(x2 - x1, y2 - y1) >= SMALLEST
        if inside and large and not others[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1].any():
            kept.append(index)
    return corners[kept]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/widerface"))
    parser.add_argument("--weights", type=Path, default=GENERATOR)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    arguments = parser.parse_args()
    config = load_config()
    device = pick_device(arguments.device)
    methods = {
        name: load_anonymizer(name, config, device, arguments.weights, detector=None)
        for name in ("gaussian", "dartblur")
    }
    source = validation_source(arguments.data)
    steps: dict[str, list[float]] = defaultdict(list)
    to_clean: dict[str, list[float]] = defaultdict(list)
    to_blur = []
    for labelled in tqdm(source.photos[: arguments.photos], unit="photo"):
        boxes = labelled.boxes[usable(labelled.boxes)]
        if not len(boxes):
            continue
        pixels = read_photo(photo_path(source.images_dir, labelled.path)).pixels
        mask = face_mask(boxes, *pixels.shape[:2]).astype(bool)
        lone = lone_boxes(boxes, *pixels.shape[:2])
        variants = {"clean": pixels}
        variants |= {name: method(pixels, boxes).pixels for name, method in methods.items()}
        for name, variant in variants.items():
            steps[name] += [border_step(variant, box) for box in lone]
            to_clean[name].append(cv2.absdiff(variant, pixels)[mask].mean())
        coded = jpeg_coded(variants["gaussian"], config["blur"]["jpeg_quality"])
        distance = cv2.absdiff(variants["dartblur"], coded)[mask].astype(float)
        to_blur.append(np.where(distance < 1, distance**2 / 2, distance - 0.5).mean())
    print(f"{len(to_blur)} photos with faces, border measured on {len(steps['clean'])} faces")
    print("| pixels | step at the box border | difference to the clean face |")
    print("|---|---|---|")
    for name in steps:
        print(f"| {name} | {np.mean(steps[name]):.2f} | {np.mean(to_clean[name]):.2f} |")
    budget = config["train_generator"]["review_budget"]
    print(
        f"distance S to Gaussian blur: mean {np.mean(to_blur):.2f}, "
        f"95th percentile {np.percentile(to_blur, 95):.2f}, "
        f"{np.mean(np.array(to_blur) <= budget):.1%} of photos within the budget of {budget:g}"
    )


if __name__ == "__main__":
    main()
