#!/usr/bin/env python
"""Anonymise photos: redraw the faces, leave the rest.

    python dartblur.py holiday                      -> holiday_dartblur/, beside holiday/
    python dartblur.py portrait.jpg                 -> portrait_dartblur/portrait.jpg, beside it
    python dartblur.py holiday more/b.png --output OUT   -> all into OUT, in the trees they had
    python dartblur.py holiday --labels label.txt   boxes from a label file, not from RetinaFace
    python dartblur.py holiday --method gaussian    -> holiday_gaussian/: plain blur, to compare
    python dartblur.py                              WIDER FACE under data/widerface, both splits:
                                                    {train,val}/images -> images_dartblur beside it

Folders are searched through all levels, but links to folders are not followed. Copies have the
format of the original, upright, with its colour profile and no other metadata; outside the face
boxes they hold the original's pixels. Originals are never written to. Boxes come from

    --boxes detector         RetinaFace, enlarged by detect.enlarge; default without --labels
    --boxes labels           --labels; a photo that they do not list fails; default with --labels
    --boxes both             --labels, and on each photo that they list RetinaFace as well: what
                             either knows is hidden; a photo that they do not list fails
    --boxes detect-missing   --labels, and RetinaFace for the photos that they do not list

--labels takes WIDER FACE's or RetinaFace's text, COCO's JSON (bbox, in pixels), or YOLO's folder of
.txt files, where e/a.txt is of the photo e/a.jpg. Paths are relative to PATH, boxes hold for the
upright photo. All classes of COCO and YOLO are hidden unless --label-classes names some.

When in doubt there is no copy: a photo that is broken, that no label lists, whose label lies
outside of it, or whose faces the network could not redraw is named at the end and gets no output;
an older copy of it is removed. Photos of other types (HEIC, RAW, video) are listed, not copied.
The output folder's manifest.jsonl says for each photo what was done, where, and why not.

Exit code: 0 all photos done; 1 some failed; 2 nothing was started; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from models.anonymize import METHODS, AnonymizeError, Anonymizer, load_anonymizer
from models.detection import DetectionError
from models.redraw import RedrawError
from models.weights import DETECTOR, GENERATOR, WeightsError
from utils.boxes import xyxy_to_xywh
from utils.config import CONFIG, ConfigError, check_limits, load_config
from utils.device import DeviceError, pick_device
from utils.image_files import PhotoError, read_photo, write_photo
from utils.label_files import read_label_source
from utils.manifest import Entry, Manifest, listed_scores
from utils.outputs import (
    Batch,
    Job,
    OutputError,
    PhotoTree,
    check_outputs,
    copy_path,
    jobs_of,
    named_trees,
    wider_trees,
)
from utils.widerface import LabelError, find_labels

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130

START_ERRORS = (
    ConfigError,
    DeviceError,
    LabelError,
    OSError,
    OutputError,
    PhotoError,
    WeightsError,
)
FILE_ERRORS = (OSError, OutputError, PhotoError)  # their messages name the file
FACE_ERRORS = (AnonymizeError, DetectionError, LabelError, RedrawError)


@dataclass
class Report:
    """What a run did, as far as it came."""

    photos: int = 0
    faces: int = 0
    faceless: int = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False

    def add(self, entry: Entry) -> None:
        """Count one photo."""
        self.photos += 1
        self.faces += entry.faces
        self.faceless += entry.status == "done" and entry.faces == 0
        if entry.error is not None:
            self.failures.append(entry.error)


def run(batches: Sequence[Batch], anonymizer: Anonymizer) -> Report:
    """Anonymise all photos and write a manifest into every output folder.

    Stops on Ctrl-C with what is done by then. Raises OSError where a manifest cannot be written.
    """
    report = Report()
    started = time.perf_counter()
    total = sum(len(batch.jobs) for batch in batches)
    with tqdm(total=total, desc=anonymizer.method, unit=" photos") as progress:
        try:
            for batch in batches:
                with Manifest(batch.output) as manifest:
                    for other in batch.others:
                        manifest.add(Entry(other.relative, "skipped", anonymizer.method))
                    for job in batch.jobs:
                        entry = anonymize_photo(job, batch.output, anonymizer)
                        manifest.add(entry)
                        report.add(entry)
                        progress.update()
        except KeyboardInterrupt:
            report.interrupted = True
    report.seconds = time.perf_counter() - started
    return report


def anonymize_photo(job: Job, output: Path, anonymizer: Anonymizer) -> Entry:
    """Read, anonymise and write one photo.

    A failure comes back as the entry's error; there is then no copy, not even an older one.
    """
    method, coding = anonymizer.method, anonymizer.config["output"]
    try:
        target = copy_path(output, job.relative)
        target.unlink(missing_ok=True)
        if job.fault is not None:
            raise PhotoError(f"{job.photo}: {job.fault}")
        photo = read_photo(job.photo)
        boxes = job.boxes_on(*photo.pixels.shape[:2])
        result = anonymizer(photo.pixels, boxes, detect=job.detects)
        write_photo(
            target,
            result.pixels,
            photo.icc_profile,
            jpeg_quality=coding["jpeg_quality"],
            subsampling=coding["jpeg_subsampling"],
        )
    except FILE_ERRORS as error:
        return Entry(job.relative, "failed", method, error=str(error))
    except FACE_ERRORS as error:
        return Entry(job.relative, "failed", method, error=f"{job.photo}: {error}")
    except Exception as error:  # out of memory, say: the photo is not known to be anonymous
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Entry(job.relative, "failed", method, error=f"{job.photo}: {reason}")
    return Entry(
        job.relative,
        "done",
        method,
        output=job.relative,
        source="detector" if job.boxes is None else job.source,
        faces=len(result.boxes),
        boxes=xyxy_to_xywh(result.boxes).round(3).tolist(),
        scores=None if result.scores is None else listed_scores(result.scores),
        flags=result.flags,
    )


def plan(options: argparse.Namespace) -> list[Batch]:
    """List what is to be done, a batch for each output folder, and check that it can be.

    Raises `OutputError`, `PhotoError`, `LabelError` or OSError.
    """
    trees: list[tuple[PhotoTree, Path | None]]
    if options.paths:
        named = named_trees(options.paths, options.output, options.method)
        trees = [(tree, options.labels) for tree in named]
    else:
        splits = wider_trees(options.data, options.output, options.method)
        is_labelled = options.boxes != "detector"
        trees = [
            (tree, find_labels(options.data, split) if is_labelled else None)
            for split, tree in splits.items()
        ]
    check_outputs([tree for tree, _ in trees])
    batches: dict[Path, Batch] = {}
    for tree, file in trees:
        labels = read_label_source(file, tree.photos, options.label_classes) if file else None
        jobs = jobs_of(tree, labels, options.boxes == "detect-missing", options.boxes == "both")
        batch = batches.setdefault(tree.output, Batch(tree.output))
        batch.notes += labels.notes if labels else []
        batch.jobs += jobs
        named_anyway = {job.relative for job in jobs}
        batch.others += [
            Job(tree.root / other, other) for other in tree.others if other not in named_anyway
        ]
    if not any(batch.jobs for batch in batches.values()):
        others = sum(len(batch.others) for batch in batches.values())
        raise OutputError(f"no photos to anonymise ({others} files of types that cannot be read)")
    return list(batches.values())


def print_summary(report: Report, batches: Sequence[Batch]) -> None:
    """Name what got no copy on stderr, then say in one line on stdout what was done."""
    for note in [note for batch in batches for note in batch.notes]:
        print(note, file=sys.stderr)
    others = [other.photo for batch in batches for other in batch.others]
    for photo in others:
        print(f"skipped, cannot read this type: {photo}", file=sys.stderr)
    for failure in report.failures:
        print(f"failed, no output: {failure}", file=sys.stderr)
    faceless = f" ({report.faceless} without a face)" if report.faceless else ""
    print(
        f"{report.photos - len(report.failures)} photos written{faceless}, "
        f"{report.faces} faces hidden, {len(report.failures)} failures, "
        f"{len(others)} skipped by type, {report.photos / report.seconds:.2f} photos/s"
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; ends the program with code 2 where options contradict each other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "paths", type=Path, nargs="*", metavar="PATH", help="folders and photos (default: --data)"
    )
    parser.add_argument("--output", type=Path, help="folder for the copies")
    parser.add_argument(
        "--data", type=Path, help="WIDER FACE tree, without PATH (default: data/widerface)"
    )
    parser.add_argument("--method", choices=METHODS, default="dartblur", help="%(default)s")
    parser.add_argument(
        "--labels", type=Path, metavar="PLACE", help="face boxes of the PATH folder, see above"
    )
    parser.add_argument(
        "--boxes", choices=["labels", "both", "detect-missing", "detector"], help="see above"
    )
    parser.add_argument(
        "--label-classes",
        action="append",
        default=[],
        metavar="CLASS",
        help="COCO category (name or id) or YOLO class number to hide; may be repeated (all)",
    )
    parser.add_argument("--score", type=float, help="lowest face probability (detect.score)")
    parser.add_argument("--jpeg-quality", type=int, help="of the copies (output.jpeg_quality)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--weights", type=Path, default=GENERATOR, metavar="FILE", help="generator (%(default)s)"
    )
    parser.add_argument(
        "--detector",
        type=Path,
        default=DETECTOR,
        metavar="FILE",
        help="RetinaFace with MobileNet or ResNet-50, told by the file (%(default)s)",
    )
    parser.add_argument("--config", type=Path, default=CONFIG, help="recipe (%(default)s)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one number of the recipe; may be repeated",
    )
    options = parser.parse_args(arguments)
    if options.paths and options.data:
        parser.error("--data is for WIDER FACE, without PATH")
    if options.labels and not (len(options.paths) == 1 and options.paths[0].is_dir()):
        parser.error("--labels goes with one PATH that is a folder")
    if options.labels and options.boxes == "detector":
        parser.error("--labels and --boxes detector contradict each other")
    if options.paths and not options.labels and options.boxes not in (None, "detector"):
        parser.error(f"--boxes {options.boxes} needs --labels")
    if options.label_classes and not options.labels:
        parser.error("--label-classes needs --labels")
    options.data = options.data or Path("data/widerface")
    return options


def read_config(options: argparse.Namespace) -> dict[str, Any]:
    """Read the recipe with the overrides of the command line. Raises `ConfigError`."""
    config = load_config(options.config, options.set)
    if options.score is not None:
        config["detect"]["score"] = options.score
    if options.jpeg_quality is not None:
        config["output"]["jpeg_quality"] = options.jpeg_quality
    check_limits(config)
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(arguments)
    try:
        config = read_config(options)
        device = pick_device(options.device)
        batches = plan(options)
        detects = any(job.detects and not job.fault for b in batches for job in b.jobs)
        anonymizer = load_anonymizer(
            options.method, config, device, options.weights, options.detector if detects else None
        )
    except START_ERRORS as error:
        print(f"dartblur.py: error: {error}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        return INTERRUPTED
    try:
        report = run(batches, anonymizer)
    except OSError as error:
        print(f"dartblur.py: error: stopped, no manifest: {error}", file=sys.stderr)
        return FAILED
    print_summary(report, batches)
    if report.interrupted:
        total = sum(len(batch.jobs) for batch in batches)
        print(f"dartblur.py: interrupted, {total - report.photos} photos left", file=sys.stderr)
        return INTERRUPTED
    return FAILED if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
