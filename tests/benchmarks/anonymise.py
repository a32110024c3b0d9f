#!/usr/bin/env python
"""How fast faces are redrawn and blurred, beside the plain way of doing the same.

    pip install -r tests/benchmarks/requirements.txt
    python tests/benchmarks/anonymise.py --data data/widerface
    python tests/benchmarks/anonymise.py --data DIR --stride 30 --blur-stride 2 --repeats 3

First table, on every `--stride`th validation photo with a labelled face, boxes from the labels:

- dartblur.py as it is started from a command line;
- the authors' way, as a plain loop: a photo is decoded, its faces are blurred by OpenCV and the
  whole is JPEG-coded, stretched to 768 × 768, given to the generator (the same weights, float32),
  stretched back, and the boxes are pasted. One photo at a time, PyTorch's own number of threads;
- the floor: the same photos decoded and encoded, in as many processes as dartblur.py has workers.

Second table, on every `--blur-stride`th: gaussblur.py with and without --exact, a plain loop of
one process around cv2.GaussianBlur, and the floor again.

Start-up, with all that is to be loaded, is in a column of its own: what a run takes beyond the time
in which it says that it worked on photos. The floor's processes are up before its time begins. All
ways take turns, `--repeats` times. Works in a temporary folder and prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils.blur import face_mask, gaussian_blur  # noqa: E402
from utils.boxes import Boxes, usable  # noqa: E402
from utils.config import load_config  # noqa: E402
from utils.image_files import Pixels, jpeg_coded, read_photo, write_photo  # noqa: E402
from utils.results import markdown_table  # noqa: E402
from utils.widerface import LabelError, LabelledPhoto, read_labels, write_labels  # noqa: E402
from utils.workers import cores  # noqa: E402

FRAME = 768
"""Side of the square that the authors' way stretches every photo to."""

Way = Callable[[Path], "Times"]


class Times(NamedTuple):
    """Seconds of one run: before the photos, and for all of them; peak memory in MB."""

    start: float
    work: float
    megabytes: float | None = None


class Coding(NamedTuple):
    """How the copies are written."""

    jpeg_quality: int
    subsampling: str


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "widerface")
    parser.add_argument("--stride", type=int, default=12, help="first table (%(default)s)")
    parser.add_argument("--blur-stride", type=int, default=1, help="second table (%(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="%(default)s")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="for dartblur.py"
    )
    parser.add_argument("--loop", choices=["redraw", "blur"], help=argparse.SUPPRESS)
    parser.add_argument("--tree", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.stride, arguments.blur_stride, arguments.repeats) < 1:
        parser.error("--stride, --blur-stride and --repeats must be 1 or more")
    return arguments


def labels_of(tree: Path) -> Path:
    return tree / "val" / "label.txt"


def images_of(tree: Path) -> Path:
    return tree / "val" / "images"


def make_tree(tree: Path, images: Path, photos: list[LabelledPhoto]) -> None:
    """Copy `photos` with their labels to a folder that both scripts take."""
    for photo in photos:
        target = images_of(tree) / photo.path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(images / photo.path, target)
    write_labels(labels_of(tree), photos)


def run(command: list[str]) -> tuple[float, str]:
    """Run a Python script; returns its seconds and what it printed. SystemExit where it fails."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed, code {done.returncode}:\n{done.stderr}")
    return seconds, done.stdout


def time_script(command: Callable[[Path, Path], list[str]], tree: Path) -> Times:
    """Time a script on `tree`; its summary says how long it worked on the photos."""
    count = len(read_labels(labels_of(tree)))
    with tempfile.TemporaryDirectory(dir=tree) as output:
        words = command(tree, Path(output))
        seconds, printed = run(words)
        copies = sum(path.suffix == ".jpg" for path in Path(output).rglob("*"))
    if copies != count:
        raise SystemExit(f"{words[0]} wrote {copies} copies of {count} photos")
    summary = printed.splitlines()[-1]
    if "--json" in words:
        work = float(json.loads(summary)["summary"]["seconds"])
    else:  # "..., 30.1 images/s"
        work = count / float(summary.split()[-2])
    return Times(seconds - work, work)


def dartblur_command(device: str, overrides: list[str], tree: Path, output: Path) -> list[str]:
    options = [
        "--quiet",
        "--json",
        "--device",
        device,
        *(f"--set={override}" for override in overrides),
    ]
    places = ["--labels", str(labels_of(tree)), "--output", str(output)]
    return [str(ROOT / "dartblur.py"), str(images_of(tree)), *places, *options]


def gaussblur_command(options: list[str], tree: Path, output: Path) -> list[str]:
    places = ["--data", str(tree), "--splits", "val", "--output", str(output)]
    return [str(ROOT / "gaussblur.py"), *places, *options]


def time_loop(name: str, device: str, tree: Path) -> Times:
    """Time one of the plain loops below, in a process of its own."""
    seconds, printed = run([__file__, "--loop", name, "--tree", str(tree), "--device", device])
    work, megabytes = json.loads(printed.splitlines()[-1])
    return Times(seconds - work, work, megabytes)


def time_floor(coding: Coding, tree: Path) -> Times:
    """Time decoding and encoding alone, once the processes are up."""
    photos = [images_of(tree) / photo.path for photo in read_labels(labels_of(tree))]
    with (
        tempfile.TemporaryDirectory(dir=tree) as folder,
        ProcessPoolExecutor(cores(), multiprocessing.get_context("spawn")) as pool,
    ):
        code_each = partial(code_again, coding, Path(folder))
        list(pool.map(code_each, photos))  # brings the processes up
        started = time.perf_counter()
        list(pool.map(code_each, photos))
        return Times(0.0, time.perf_counter() - started)


def code_again(coding: Coding, folder: Path, photo: Path) -> None:
    """Decode a photo and encode it, as the scripts do."""
    read = read_photo(photo)
    write_photo(folder / photo.name, read.pixels, read.icc_profile, *coding)


def plain_loop(name: str, device_name: str, tree: Path) -> None:
    """Do the photos of `tree` one after the other; print the seconds and peak MB."""
    config = load_config()
    blur, output = config["blur"], config["output"]
    if name == "redraw":
        change = plain_redraw(blur["kernel_factor"], blur["jpeg_quality"], device_name)
        quality, sampling = output["jpeg_quality"], cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    else:
        change = partial(gaussian_blur, kernel_factor=blur["kernel_factor"], exact=True)
        quality, sampling = blur["jpeg_quality"], cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=tree) as folder:
        for photo in read_labels(labels_of(tree)):
            pixels = cv2.imread(str(images_of(tree) / photo.path))
            if pixels is None:
                raise SystemExit(f"{photo.path}: OpenCV cannot read it")
            changed = change(pixels.astype(np.uint8, copy=False), photo.boxes[usable(photo.boxes)])
            if not cv2.imwrite(str(Path(folder) / Path(photo.path).name), changed, options):
                raise SystemExit(f"{photo.path}: OpenCV cannot write the copy")
    work, megabytes = time.perf_counter() - started, None
    if name == "redraw":  # the blur does without PyTorch, which this imports
        from tests.benchmarks.training import peak_megabytes
        from utils.device import pick_device

        megabytes = peak_megabytes(pick_device(device_name))
    print(json.dumps([work, megabytes]))


def plain_redraw(
    kernel_factor: float, jpeg_quality: int, device_name: str
) -> Callable[[Pixels, Boxes], Pixels]:
    """The authors' way with one photo, uint8 [H, W, 3] BGR, and its boxes [N, 4] as xyxy."""
    import torch

    from models.generator import BlurGenerator
    from models.redraw import redraw_whole_frame
    from models.weights import GENERATOR, load_weights
    from utils.device import pick_device

    device = pick_device(device_name)
    generator = BlurGenerator()
    load_weights(generator, GENERATOR)
    generator.eval().to(device)

    def change(pixels: Pixels, boxes: Boxes) -> Pixels:
        height, width = pixels.shape[:2]
        blurred = gaussian_blur(pixels, boxes, kernel_factor, exact=True)
        coded = jpeg_coded(blurred[..., ::-1], jpeg_quality)  # RGB
        stretched = cv2.resize(coded, (FRAME, FRAME))
        frame = torch.from_numpy(stretched).to(device).permute(2, 0, 1)[None].float()
        scale = np.array([FRAME / width, FRAME / height] * 2)
        with torch.inference_mode():
            redrawn = redraw_whole_frame(generator, frame, [boxes * scale])  # [1, 3, 768, 768]
        output = redrawn[0].round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        back = cv2.cvtColor(cv2.resize(output, (width, height)), cv2.COLOR_RGB2BGR)
        mask = face_mask(boxes, height, width)[..., None] > 0
        return np.where(mask, back, pixels).astype(np.uint8)

    return change


def compare(ways: dict[str, Way], reference: str, tree: Path, repeats: int) -> None:
    """Let the ways take turns; print photos/s and how that compares with `reference`."""
    count = len(read_labels(labels_of(tree)))
    runs: dict[str, list[Times]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            runs[name].append(way(tree))
    rows = []
    of_reference = statistics.median(times.work for times in runs[reference])
    for name, all_times in runs.items():
        work = statistics.median(times.work for times in all_times)
        peaks = [times.megabytes for times in all_times if times.megabytes is not None]
        rows.append(
            [
                name,
                f"{statistics.median(times.start for times in all_times):.2f}",
                f"{work / count:.3f} ({min(times.work for times in all_times) / count:.3f})",
                f"{count / work:.2f}",
                f"{of_reference / work:.2f}",
                f"{max(peaks):.0f} MB" if peaks else "",
            ]
        )
    header = ["way", "start-up, s", "s a photo, median (least)", "photos/s"]
    print(markdown_table([*header, f"times {reference}", "peak memory"], rows), flush=True)


def prepare(folder: Path, data: Path, stride: int) -> Path:
    """Copy every `stride`th validation photo with a face to `folder`."""
    from utils.face_dataset import validation_source

    source = validation_source(data)
    photos = [photo for photo in source.photos if usable(photo.boxes).any()][::stride]
    if not photos:
        raise SystemExit(f"{data}: no validation photo has a labelled face")
    make_tree(folder, source.images_dir, photos)
    faces = sum(int(usable(photo.boxes).sum()) for photo in photos)
    print(f"\n{len(photos)} photos with {faces} faces:\n", flush=True)
    return folder


def main() -> None:
    arguments = parse_arguments()
    if arguments.loop:
        plain_loop(arguments.loop, arguments.device, arguments.tree)
        return
    from utils.provenance import provenance

    origin = provenance()
    machine, versions = origin["machine"], origin["versions"]
    print(
        f"{machine['cpu']}, {cores()} cores, {machine['threads']} threads of PyTorch "
        f"{versions['torch']}, OpenCV {versions['opencv']}; device {arguments.device}"
    )
    config = load_config()
    output = config["output"]
    redrawing: dict[str, Way] = {
        "dartblur.py": partial(
            time_script, partial(dartblur_command, arguments.device, arguments.set)
        ),
        "authors' way": partial(time_loop, "redraw", arguments.device),
        "floor": partial(time_floor, Coding(output["jpeg_quality"], output["jpeg_subsampling"])),
    }
    blurring: dict[str, Way] = {
        "gaussblur.py": partial(time_script, partial(gaussblur_command, [])),
        "gaussblur.py --exact": partial(time_script, partial(gaussblur_command, ["--exact"])),
        "plain loop": partial(time_loop, "blur", "cpu"),
        "floor": partial(time_floor, Coding(config["blur"]["jpeg_quality"], "4:2:0")),
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            tree = prepare(Path(folder, "redraw"), arguments.data, arguments.stride)
            compare(redrawing, "authors' way", tree, arguments.repeats)
            tree = prepare(Path(folder, "blur"), arguments.data, arguments.blur_stride)
            compare(blurring, "plain loop", tree, arguments.repeats)
    except (LabelError, OSError) as error:
        raise SystemExit(f"anonymise.py: error: {error}") from None


if __name__ == "__main__":
    main()
