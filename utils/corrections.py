"""Boxes that a person corrected: `dartblur.py --corrections FILE`, and what later runs keep of it.

A photo's corrected boxes stand in its line of the manifest, with the source "corrections". Later
runs into the same output folder take them from there: a box that a person added is not lost where
a detector would miss the face again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from utils.boxes import Boxes, as_boxes, xywh_to_xyxy, xyxy_to_xywh
from utils.manifest import NAME, PART, Entry, read_manifest
from utils.outputs import UNLISTED, Batch, Job, OutputError
from utils.photo_job import PhotoJob
from utils.widerface import read_labels

CORRECTED = "corrections"  # the source of such boxes, in jobs and in manifests


def corrected_batches(batches: Sequence[Batch], file: Path) -> list[Batch]:
    """Keep the photos that the label file `file` lists, with the boxes that it gives them.

    Raises `LabelError` or OSError for the file, `OutputError` for a photo in it that is in none
    of the batches, in several, or of which the output folder has no record yet.
    """
    photos = {PurePosixPath(photo.path).as_posix(): photo.boxes for photo in read_labels(file)}
    found: dict[str, Path] = {}
    kept = []
    for batch in batches:
        jobs = [job for job in batch.jobs if job.relative in photos]
        recorded = {entry["path"] for entry in _lines(batch.output) if entry["path"] in photos}
        for job in jobs:
            if job.relative in found:
                raise OutputError(
                    f"{file}: {job.relative!r} is a photo of both {found[job.relative]} and "
                    f"{batch.output}; correct one folder at a time"
                )
            if job.relative not in recorded:
                raise OutputError(
                    f"{file}: the manifest in {batch.output} does not know {job.relative!r}; "
                    "--corrections goes with the command whose result was reviewed"
                )
            found[job.relative] = batch.output
        if jobs:
            kept.append(
                Batch(batch.output, [_corrected(job, photos[job.relative]) for job in jobs])
            )
    for name in photos:
        if name not in found:
            raise OutputError(
                f"{file}: {name!r} is not among the photos; "
                "--corrections goes with the command whose result was reviewed"
            )
    return kept


def keep_corrections(batch: Batch) -> Batch:
    """Give the photos that were corrected before the boxes that they got then."""
    boxes: dict[str, Boxes] = {}
    for entry in _lines(batch.output):
        if entry.get("source") == CORRECTED:
            boxes[entry["path"]] = xywh_to_xyxy(as_boxes(entry["boxes"]))
        else:  # a newer line about it
            boxes.pop(entry["path"], None)
    jobs = [
        _corrected(job, boxes[job.relative]) if job.relative in boxes else job for job in batch.jobs
    ]
    return replace(batch, jobs=jobs)


def remembered(entry: Entry, job: PhotoJob) -> Entry:
    """Let the record of a photo that failed keep its corrected boxes, for the next try."""
    if entry.status == "done" or job.source != CORRECTED or not isinstance(job.boxes, np.ndarray):
        return entry
    boxes = xyxy_to_xywh(job.boxes).round(3).tolist()
    return replace(entry, source=CORRECTED, boxes=boxes)


def _corrected(job: Job, boxes: Boxes) -> Job:
    fault = None if job.fault == UNLISTED else job.fault  # it is listed now
    return replace(job, boxes=boxes, source=CORRECTED, fault=fault)


def _lines(output: Path) -> Iterator[dict[str, Any]]:
    """Lines of the manifest, then those that a crashed run left beside it."""
    for name in (NAME, PART):
        yield from read_manifest(output / name)
