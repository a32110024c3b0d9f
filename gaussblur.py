"""Blur the labelled faces of WIDER FACE: the copies that DartBlur starts from.

    python gaussblur.py                                  both splits of data/widerface
    python gaussblur.py --data DIR --splits val          one split of another folder
    python gaussblur.py --data DIR --output OUT          leave DIR as it is

Reads the labels of DIR/{train,val} and the photos of DIR/{train,val}/images. Writes JPEG files of
quality 80 under the same names to DIR/{train,val}/images_G2_M80 (or OUT/...); photos without a
face are written too, for the same coding everywhere. The numbers come from config.yaml, section
`blur`.

A photo that cannot be read, whose label lies outside of it, or that makes a worker process crash or
hang, is named on stderr and gets no output; the others go on, and the exit code is 1. A run that
was stopped goes on where it was when started again: it skips the files that are there, whatever
settings they were made with, unless --overwrite is given.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from utils.blur import gaussian_blur
from utils.boxes import outside_message, usable
from utils.config import ConfigError, load_config
from utils.image_files import PhotoError, read_photo, write_photo
from utils.job_steps import Ended, Event, Lost
from utils.widerface import HOW_TO_GET, SPLITS, LabelError, find_labels, photo_path, read_labels
from utils.workers import MOST_WORKERS, WorkerError, WorkerPool, cores, interruptions

INTERRUPTED = 130  # exit code of a program stopped by Ctrl-C

PHOTO_SECONDS = 600.0  # a worker that is busy with one photo for longer is ended


class UsageError(Exception):
    """The run cannot start; the message says why and what to do."""


@dataclass(frozen=True)
class Settings:
    """How a photo is blurred and written; the fields are the command's options."""

    kernel_factor: float
    jpeg_quality: int
    exact: bool
    overwrite: bool


@dataclass(frozen=True)
class Job:
    """One photo: `relative` in the folder `images`, to be written under that name to `output`."""

    images: Path
    output: Path
    relative: str
    boxes: NDArray[np.float64]
    settings: Settings


@dataclass(frozen=True)
class Outcome:
    """What became of a job: `faces` blurred; nothing to do (`was_done`); or an `error`."""

    faces: int = 0
    was_done: bool = False
    error: str | None = None


def blur_photo(job: Job) -> Outcome:
    """Read, blur and write one photo. Failures come back as `Outcome.error`, one line."""
    try:
        source = photo_path(job.images, job.relative)
        target = photo_path(job.output, job.relative)
        if target.suffix.lower() not in (".jpg", ".jpeg"):
            raise PhotoError(f"{source}: not named .jpg or .jpeg, and the copy would be a JPEG")
        if target.is_file():
            if not job.settings.overwrite:
                return Outcome(was_done=True)
            target.unlink()  # what fails below must not leave a copy that nobody asked for
        photo = read_photo(source)
        faces = job.boxes[usable(job.boxes)]
        outside = outside_message(faces, *photo.pixels.shape[:2])
        if outside:
            raise PhotoError(f"{source}: {outside}")
        blurred = gaussian_blur(photo.pixels, faces, job.settings.kernel_factor, job.settings.exact)
        write_photo(
            target,
            blurred,
            photo.icc_profile,
            jpeg_quality=job.settings.jpeg_quality,
            subsampling="4:2:0",
        )
    except (PhotoError, LabelError, OSError) as error:
        return Outcome(error=str(error))
    except (cv2.error, MemoryError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(error=f"{job.images / job.relative}: {reason}")
    return Outcome(faces=len(faces))


def split_jobs(data: Path, split: str, output: Path, settings: Settings) -> list[Job]:
    """List the jobs of one split, to be written to the folder `output`.

    Raises UsageError, LabelError or FileNotFoundError where the split cannot be processed.
    """
    images = data / split / "images"
    for other in SPLITS:
        kept = (data / other / "images").resolve()
        if output.resolve().is_relative_to(kept):
            raise UsageError(f"{output} lies in {kept}, among the originals; choose another folder")
    labels = find_labels(data, split)
    if not images.is_dir():
        raise UsageError(f"{images} does not exist; {HOW_TO_GET}")
    return [Job(images, output, photo.path, photo.boxes, settings) for photo in read_labels(labels)]


def run(name: str, jobs: Sequence[Job], workers: int) -> int:
    """Run the jobs of one split in `workers` processes; returns the number of failures.

    Failures and the progress go to stderr, a summary line to stdout.
    """
    started = time.perf_counter()
    count = max(1, min(workers, len(jobs), MOST_WORKERS))
    done = faces = failures = 0
    with (
        WorkerPool(blur_photo, count, lambda job: PHOTO_SECONDS) as pool,
        interruptions() as is_interrupted,
        tqdm(desc=name, total=len(jobs), unit=" images") as progress,
    ):
        for event in pool.run(jobs, is_interrupted):
            outcome = _outcome(event)
            progress.update()
            done += outcome.was_done
            faces += outcome.faces
            if outcome.error is not None:
                failures += 1
                tqdm.write(f"failed: {outcome.error}", file=sys.stderr)
        if is_interrupted():
            raise KeyboardInterrupt
    seconds = time.perf_counter() - started
    written = len(jobs) - done - failures
    print(
        f"{name}: {len(jobs)} photos, {written} written, {done} skipped as done, "
        f"{faces} faces blurred, {failures} failures, {written / seconds:.1f} images/s"
    )
    return failures


def _outcome(event: Event) -> Outcome:
    """What became of a job, also where its process did not live to tell."""
    if isinstance(event, Lost):
        job: Job = event.job
        # It may have died when the copy was just in place.
        photo_path(job.output, job.relative).unlink(missing_ok=True)
        return Outcome(error=f"{job.images / job.relative}: {event.reason}")
    assert isinstance(event, Ended), "no job asks for anything"
    outcome: Outcome = event.value
    return outcome


def _existing_splits(data: Path) -> list[str]:
    splits = [split for split in SPLITS if (data / split / "images").is_dir()]
    if not splits:
        raise UsageError(
            f"neither {data / 'train' / 'images'} nor {data / 'val' / 'images'} exists; "
            f"{HOW_TO_GET}, or name its folder with --data"
        )
    return splits


def parse_arguments(
    blur: Mapping[str, object], arguments: Sequence[str] | None
) -> argparse.Namespace:
    """Parse the command line; `blur` is the section of config.yaml that holds the defaults."""
    description, _, epilog = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, default=Path("data/widerface"), help="default: %(default)s"
    )
    parser.add_argument("--output", type=Path, help="default: beside images/, inside --data")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, help="default: those whose images/ exists"
    )
    parser.add_argument(
        "--workers",
        type=_whole_number(1, 10_000),
        default=cores(),
        help="processes; default: the number of cores, %(default)s",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="write files again that are there already"
    )
    parser.add_argument(
        "--exact",
        action="store_true",
        help="call OpenCV for large kernels too: several times slower, and the same result",
    )
    parser.add_argument(
        "--kernel-factor",
        type=_positive_number,
        default=str(blur["kernel_factor"]),  # a string, to be checked like one from a user
        help="kernel side / box side; default: %(default)s",
    )
    parser.add_argument(
        "--jpeg-quality",
        type=_whole_number(1, 100),
        default=str(blur["jpeg_quality"]),
        help="1 to 100; default: %(default)s",
    )
    return parser.parse_args(arguments)


def _whole_number(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else -1
        if not lowest <= number <= highest:
            raise argparse.ArgumentTypeError(
                f"expected a whole number from {lowest} to {highest}, got {text!r}"
            )
        return number

    return parse


def _positive_number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Blur the splits asked for; returns the exit code."""
    try:
        blur = load_config()["blur"]
        options = parse_arguments(blur, arguments)
        settings = Settings(
            options.kernel_factor, options.jpeg_quality, options.exact, options.overwrite
        )
        target = options.output or options.data
        # All splits are checked before the first photo is touched.
        jobs = {
            split: split_jobs(options.data, split, target / split / blur["folder"], settings)
            for split in options.splits or _existing_splits(options.data)
        }
        failures = [run(split, jobs[split], options.workers) for split in jobs]
    except (UsageError, ConfigError, LabelError, OSError, WorkerError) as error:
        print(f"gaussblur.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("gaussblur.py: interrupted; start it again to go on", file=sys.stderr)
        return INTERRUPTED
    return 1 if any(failures) else 0


if __name__ == "__main__":
    sys.exit(main())
