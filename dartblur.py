#!/usr/bin/env python
"""Anonymise photos: redraw the faces, leave the rest.

    python dartblur.py holiday                      -> holiday_dartblur/, beside holiday/
    python dartblur.py portrait.jpg                 -> portrait_dartblur/portrait.jpg, beside it
    python dartblur.py holiday more/b.png --output OUT   -> all into OUT, in the trees they had
    python dartblur.py holiday --labels label.txt   boxes from a label file, not from RetinaFace
    python dartblur.py holiday --method gaussian    -> holiday_gaussian/: plain blur, to compare
    python dartblur.py holiday --review check.html  and a page to check the copies on
    python dartblur.py holiday --corrections check-corrections.txt
                                                    only the photos corrected on that page again
    python dartblur.py                              WIDER FACE under data/widerface, both splits:
                                                    {train,val}/images -> images_dartblur beside it

Folders are searched through all levels, but links to folders are named and not followed. Copies
have the format of the original, upright, grey or in colour, with its transparency and colour
profile; outside the face boxes they hold the original's pixels, 16 bits a channel reduced to 8 and
CMYK to sRGB. They hold no other metadata. With --keep-metadata they get its EXIF and XMP, where
the format has a place for them, less thumbnails, previews and maker notes: who took the photo
where, when and with which camera stays readable, and so do names of people in XMP. Originals are
never written to. Boxes come from

    --boxes detector         RetinaFace, enlarged by detect.enlarge; default without --labels
    --boxes labels           --labels; a photo that they do not list fails; default with --labels
    --boxes both             --labels, and on each photo that they list RetinaFace as well: what
                             either knows is hidden; a photo that they do not list fails
    --boxes detect-missing   --labels, and RetinaFace for the photos that they do not list

--labels takes WIDER FACE's or RetinaFace's text, COCO's JSON (bbox, in pixels), or YOLO's folder of
.txt files, where e/a.txt is of the photo e/a.jpg. Paths are relative to PATH, boxes hold for the
upright photo. All classes of COCO and YOLO are hidden unless --label-classes names some.

When in doubt there is no copy: a photo that is broken, has several frames or pages or more pixels
than input.max_megapixels, that no label lists, whose label lies
outside of it, or whose faces the network could not redraw is named at the end and gets no output;
an older copy of it is removed. So is one that makes a worker process crash or takes longer than
--timeout. Photos of other types (HEIC, RAW, video) are listed, not copied. The output folder's
manifest.jsonl says for each photo what was done, where, and why not.

    --on-no-face copy        a photo without a face is copied like the others; default
    --on-no-face skip        it gets no copy, which is no failure
    --on-no-face fail        it gets no copy, and fails

A run that was stopped, in whatever way, goes on where it was when the same command is given again.
Photos whose file, boxes, settings or weights have changed since are done anew.

--review writes one page that needs no network, of the copies alone. It shows the most doubtful
photos first (no copy, no face, flags, low scores); a click removes a box, a drag adds one, and what
was corrected is saved as a label file for --corrections, given beside the same options as before.
Later runs into the same folder keep corrected boxes; another --output starts anew.

    python dartblur.py holiday --dry-run            find the faces, count them, estimate the time
    python dartblur.py holiday --json > log.jsonl   a line of JSON for each photo, then a summary
    python dartblur.py holiday --quiet              failures and the summary alone
    python dartblur.py holiday --workers 0          all in one process, to look into an error

Exit code: 0 all photos done; 1 some failed, or the run could not go on (a full disk); 2 nothing was
started; 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config import CONFIG, ConfigError, check_limits, load_config
from utils.corrections import CORRECTED, corrected_batches, keep_corrections
from utils.hiding import METHODS
from utils.image_files import PhotoError, shown
from utils.label_files import read_label_source
from utils.outputs import (
    Batch,
    OutputError,
    PhotoTree,
    batches_of,
    check_outputs,
    named_trees,
    wider_trees,
)
from utils.photo_job import DISK_FULL, ON_NO_FACE, Settings, photo_pool
from utils.review_page import PER_PAGE, check_review, write_review
from utils.run_report import Display, Report, print_estimate, print_summary
from utils.widerface import LabelError, find_labels

# Worker processes import this file: what imports PyTorch is imported where it is needed.
if TYPE_CHECKING:
    from models.network_threads import NetworkThreads

FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130

SHIPPED = Path(__file__).resolve().parent / "models" / "weights"


class StartError(Exception):
    """The networks cannot be loaded; the message is one line."""


START_ERRORS = (ConfigError, LabelError, OSError, OutputError, PhotoError, StartError)


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
    labelled = (
        (tree, read_label_source(file, tree.photos, options.label_classes) if file else None)
        for tree, file in trees
    )
    batches = batches_of(labelled, options.boxes == "detect-missing", options.boxes == "both")
    if options.corrections is not None:
        return corrected_batches(batches, options.corrections)
    kept = [keep_corrections(batch) for batch in batches]
    count = sum(job.source == CORRECTED for batch in kept for job in batch.jobs)
    if count and not options.quiet:
        print(f"{count} photos keep the boxes of an earlier correction", file=sys.stderr)
    return kept


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
    parser.add_argument(
        "--corrections",
        type=Path,
        metavar="FILE",
        help="do only the photos of this label file again, which a review page saved",
    )
    parser.add_argument(
        "--review", type=Path, metavar="FILE.html", help="write a page to check the copies on"
    )
    parser.add_argument(
        "--review-limit",
        type=int,
        default=PER_PAGE,
        metavar="N",
        help=f"photos to review, {PER_PAGE} a page (%(default)s)",
    )
    parser.add_argument("--score", type=float, help="lowest face probability (detect.score)")
    parser.add_argument("--jpeg-quality", type=int, help="of the copies (output.jpeg_quality)")
    parser.add_argument("--on-no-face", choices=ON_NO_FACE, default="copy", help="see above")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that read, blur and write; 0: all in this one (default: by the cores)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        metavar="SECONDS",
        help="a worker that reads, blurs or writes one photo for longer is ended and the photo "
        "fails; 2 s more for each MB of its file (%(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="write nothing; see above")
    parser.add_argument("--json", action="store_true", help="for programs; see above")
    parser.add_argument("--quiet", action="store_true", help="see above")
    parser.add_argument(
        "--keep-metadata",
        action="store_true",
        help="EXIF and XMP, less pictures and maker notes (output.keep_metadata)",
    )
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument(
        "--weights",
        type=Path,
        default=SHIPPED / "dartblur_generator.safetensors",
        metavar="FILE",
        help="generator (%(default)s)",
    )
    parser.add_argument(
        "--detector",
        type=Path,
        default=SHIPPED / "retinaface_mobilenet0.25.safetensors",
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
    if options.review and options.dry_run:
        parser.error("--dry-run writes nothing, so no --review page either")
    if options.review_limit < 1:
        parser.error("--review-limit must be 1 or more")
    if options.workers is not None and options.workers < 0:
        parser.error("--workers must be 0 or more")
    if not options.timeout > 0:
        parser.error("--timeout must be above 0")
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
    config["output"]["keep_metadata"] |= options.keep_metadata
    check_limits(config)
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = parse_arguments(arguments)
    try:
        config = read_config(options)
        if options.review is not None:
            check_review(options.review)
        batches = plan(options)
        return anonymize(options, config, batches)
    except START_ERRORS as error:
        print(f"dartblur.py: error: {shown(error)}", file=sys.stderr)
        return UNUSABLE
    except KeyboardInterrupt:
        return INTERRUPTED


def anonymize(options: argparse.Namespace, config: dict[str, Any], batches: list[Batch]) -> int:
    """Do what was planned; returns the exit code."""
    try:
        report, estimate = run(options, config, batches)
    except OSError as error:
        reason = "the disk is full" if error.errno in DISK_FULL else str(error)
        print(
            f"dartblur.py: error: stopped, the manifest cannot be written: {reason}; "
            "the same command goes on from here",
            file=sys.stderr,
        )
        return FAILED
    if estimate is not None:
        print_estimate(report, estimate, options.json)
    else:
        print_summary(report, batches, options.quiet, options.json)
    if report.interrupted:
        print(f"dartblur.py: interrupted, {report.left} photos left", file=sys.stderr)
        return INTERRUPTED
    if report.stopped is not None:
        print(
            f"dartblur.py: error: stopped, {report.left} photos left: {report.stopped}; "
            "the same command goes on from here",
            file=sys.stderr,
        )
        return FAILED
    if options.review is not None:
        try:
            folders = [batch.output for batch in batches]
            review = write_review(options.review, folders, options.review_limit)
        except (OSError, OutputError) as error:
            print(f"dartblur.py: error: no review page: {error}", file=sys.stderr)
            return FAILED
        print(
            json.dumps({"review": [str(page) for page in review.pages]}) if options.json else review
        )
    return FAILED if report.failures else 0


def run(
    options: argparse.Namespace, config: dict[str, Any], batches: list[Batch]
) -> tuple[Report, float | None]:
    """Start the processes and the networks, and do what was planned.

    Also returns the seconds that the run would take, for a dry run. Raises `StartError` where the
    networks cannot be loaded, OSError where a manifest cannot be written.
    """
    settings = Settings(options.method, config, options.on_no_face)
    jobs = [job for batch in batches for job in batch.jobs]
    detects = any(job.detects and not job.fault for job in jobs)
    with ExitStack() as stack:
        # The processes come up while this one imports PyTorch.
        pool = photo_pool(options.workers, len(jobs), options.timeout)
        stack.enter_context(pool)
        networks: NetworkThreads | None = None
        weights: dict[str, str] = {}
        if detects or options.method == "dartblur":
            from models.network_threads import LOAD_ERRORS, load_networks

            try:
                networks, weights = load_networks(
                    options.method,
                    config,
                    options.device,
                    options.weights,
                    options.detector if detects else None,
                )
            except LOAD_ERRORS as error:
                raise StartError(str(error)) from None
            stack.enter_context(networks)
        from models.anonymize_folder import anonymize_folders, rehearse

        display = stack.enter_context(Display(options.method, options.quiet, options.json))
        if options.dry_run:
            return rehearse(batches, settings, weights, pool, networks, display)
        return anonymize_folders(batches, settings, weights, pool, networks, display), None


if __name__ == "__main__":
    sys.exit(main())
