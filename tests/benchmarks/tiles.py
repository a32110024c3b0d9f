#!/usr/bin/env python
"""What tiles cost in error and save in time: the curves behind `generator.context` and `face_size`.

    python tests/benchmarks/tiles.py --data data/widerface --photos 12

First table: for each context margin, the difference between tiles and the whole frame inside
the faces, in grey levels (1/255), and the time relative to the whole frame; faces of every
size at the photo's own scale. Second table: for each size cap, on photos with a face above
the smallest cap, the distance to plain blur, the share of labelled faces that the detector
still finds, and the time relative to no cap. Photos are the first of the validation split
that have a face, scaled to `--side` so that the whole frame fits in memory.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from models.detection import detect
from models.generator import BlurGenerator
from models.redraw import frame_masks, redraw, redraw_whole_frame
from models.retinaface import RetinaFace
from models.weights import DETECTOR, GENERATOR, load_weights
from utils.blur import gaussian_blur
from utils.boxes import usable
from utils.config import load_config
from utils.device import pick_device
from utils.face_dataset import validation_source
from utils.image_files import jpeg_coded, read_photo
from utils.widerface import photo_path

NO_CAP = 1 << 20


def load_photos(
    data: Path, count: int, side: int, min_face: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Blurred, JPEG-coded validation photos [H, W, 3] with their face boxes [N, 4]."""
    blur = load_config()["blur"]
    source = validation_source(data)
    photos = []
    for labelled in source.photos:
        boxes = labelled.boxes[usable(labelled.boxes)]
        if not len(boxes):
            continue
        pixels = read_photo(photo_path(source.images_dir, labelled.path)).pixels
        zoom = min(1.0, side / max(pixels.shape[:2]))
        if (boxes[:, 2:] - boxes[:, :2]).max() * zoom <= min_face:
            continue
        scaled = cv2.resize(pixels, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        blurred = gaussian_blur(
            scaled.astype(np.uint8, copy=False), boxes * zoom, blur["kernel_factor"]
        )
        photos.append((jpeg_coded(blurred, blur["jpeg_quality"]), boxes * zoom))
        if len(photos) == count:
            break
    return photos


def as_frame(pixels: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [H, W, 3] -> float [1, 3, H, W]."""
    return torch.from_numpy(pixels).to(device).permute(2, 0, 1)[None].float()


def clock(device: torch.device) -> float:
    """Seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def margin_table(
    generator: nn.Module, photos: list[tuple[np.ndarray, np.ndarray]], device: torch.device
) -> None:
    """Print error and relative time for each context margin."""
    margins = (0, 8, 16, 32, 48, 64, 96, 128, 192)
    errors: dict[int, list[np.ndarray]] = {margin: [] for margin in margins}
    seconds = dict.fromkeys(margins, 0.0)
    whole_seconds = 0.0
    for pixels, boxes in photos:
        frame = as_frame(pixels, device)
        inside = frame_masks([boxes], *pixels.shape[:2])[0, 0].bool()
        start = clock(device)
        whole = redraw_whole_frame(generator, frame, [boxes])
        whole_seconds += clock(device) - start
        for margin in margins:
            start = clock(device)
            tiled = redraw(generator, frame, [boxes], NO_CAP, margin)
            seconds[margin] += clock(device) - start
            errors[margin].append((tiled - whole).abs()[0].cpu()[:, inside].flatten().numpy())
    print("| context, px | mean error | 99th percentile | maximum | time / whole frame |")
    print("|---|---|---|---|---|")
    for margin in margins:
        error = np.concatenate(errors[margin])
        print(
            f"| {margin} | {error.mean():.3f} | {np.percentile(error, 99):.3f} "
            f"| {error.max():.2f} | {seconds[margin] / whole_seconds:.2f} |"
        )


def cap_table(
    generator: nn.Module,
    detector: RetinaFace,
    photos: list[tuple[np.ndarray, np.ndarray]],
    context: int,
    device: torch.device,
) -> None:
    """Print distance to blur, faces still found and relative time for each size cap."""
    rows = []
    for cap in (64, 128, 256, 512, NO_CAP):
        distances, found, faces, seconds = [], 0, 0, 0.0
        for pixels, boxes in photos:
            frame = as_frame(pixels, device)
            inside = frame_masks([boxes], *pixels.shape[:2])[0, 0].bool()
            start = clock(device)
            redrawn = redraw(generator, frame, [boxes], cap, context)
            seconds += clock(device) - start
            distances.append((redrawn - frame).abs()[0].cpu()[:, inside].mean().item())
            image = redrawn[0].permute(1, 2, 0).round().clamp(0, 255).byte().cpu().numpy()
            found += recalled(detect(detector, image, score=0.5, nms_iou=0.4)[0], boxes)
            faces += len(boxes)
        rows.append((cap, float(np.mean(distances)), found / faces, seconds))
    print("| face size cap, px | mean distance to blur | faces still found | time / no cap |")
    print("|---|---|---|---|")
    for cap, distance, share, seconds in rows:
        name = "none" if cap == NO_CAP else str(cap)
        print(f"| {name} | {distance:.2f} | {share:.3f} | {seconds / rows[-1][3]:.2f} |")


def recalled(found: np.ndarray, faces: np.ndarray) -> int:
    """How many `faces` [N, 4] overlap a `found` box [M, 4] by IoU 0.5 or more."""
    if not len(found):
        return 0
    top_left = np.maximum(faces[:, None, :2], found[None, :, :2])
    bottom_right = np.minimum(faces[:, None, 2:], found[None, :, 2:])
    overlap = (bottom_right - top_left).clip(min=0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (faces, found)]
    iou = overlap / (areas[0][:, None] + areas[1][None] - overlap)
    return int((iou.max(axis=1) >= 0.5).sum())


def main() -> None:
    """Parse, load, print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/widerface"))
    parser.add_argument("--weights", type=Path, default=GENERATOR)
    parser.add_argument("--photos", type=int, default=12)
    parser.add_argument("--side", type=int, default=640, help="longest side of the photos, px")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    generator = BlurGenerator().to(device).eval()
    load_weights(generator, arguments.weights)
    detector = RetinaFace().to(device).eval()
    load_weights(detector, DETECTOR)
    generator.to(memory_format=torch.channels_last)
    context = load_config()["generator"]["context"]
    with torch.inference_mode():
        margin_table(
            generator, load_photos(arguments.data, arguments.photos, arguments.side, 0), device
        )
        print()
        large = load_photos(arguments.data, arguments.photos, arguments.side, 64)
        cap_table(generator, detector, large, context, device)


if __name__ == "__main__":
    main()
