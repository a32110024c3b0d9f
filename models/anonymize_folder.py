"""Anonymises folders: many photos at once, in order of their progress, and none of them twice.

Worker processes read, blur and write (`utils.photo_job`), the networks run in this one, and this
module keeps the books: what is done already, what becomes of each photo, and the manifest.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from utils.boxes import Boxes
from utils.corrections import remembered
from utils.hiding import RECIPE
from utils.job_steps import Asked, Ended, InlinePool, Lost
from utils.manifest import NAME, PART, Entry, Manifest, read_manifest
from utils.outputs import Batch, OutputError, copy_path, remove_leftovers
from utils.photo_job import DiskFull, PhotoJob, Settings, no_face_setting
from utils.photo_labels import PhotoLabels
from utils.run_report import Display, Report
from utils.workers import WorkerError, WorkerPool, interruptions

SAMPLE = 16
"""Photos that a dry run anonymises to estimate the time."""


class Networks(Protocol):
    """Answers what jobs ask for; see `models.network_threads`."""

    def submit(self, asked: Asked) -> None:
        """Take a request; it is answered, or refused, by another thread."""


def anonymize_folders(
    batches: Sequence[Batch],
    settings: Settings,
    weights: Mapping[str, str],
    pool: WorkerPool | InlinePool,
    networks: Networks | None,
    display: Display,
) -> Report:
    """Anonymise all photos that are not done, with a manifest in every output folder.

    weights: digests of the networks' files, by "generator" and "detector". pool: of
    `anonymize_photo`. networks: None where no job will ask for them. Stops on Ctrl-C with what is
    done by then, and where it cannot go on, with the reason in `Report.stopped`. Raises OSError
    where a manifest cannot be written.
    """
    report = Report()
    started = time.perf_counter()
    with ExitStack() as stack:
        manifests = {batch.output: stack.enter_context(Manifest(batch.output)) for batch in batches}
        jobs: list[PhotoJob] = []
        for batch in batches:
            remove_leftovers(batch.output)
            jobs += _left_to_do(_jobs(batch, settings, weights), batch.output, report)
            for other in batch.others:
                manifests[batch.output].add(Entry(other.relative, "skipped", settings.method))
        report.left = len(jobs)
        display.start(report)

        def finish(event: Ended | Lost) -> None:
            entry = _entry(event)
            manifests[event.job.output].add(entry)
            report.add(entry)
            display.photo(entry, report)

        try:
            report.interrupted = _work(pool, jobs, networks, finish)
        except KeyboardInterrupt:
            report.interrupted = True
        except (WorkerError, _Stopped) as error:
            report.stopped = str(error)
        for event in pool.stop():
            if not isinstance(event, Ended) or not isinstance(event.value, DiskFull):
                finish(event)
        for batch in batches:
            remove_leftovers(batch.output)
    report.seconds = time.perf_counter() - started
    return report


def rehearse(
    batches: Sequence[Batch],
    settings: Settings,
    weights: Mapping[str, str],
    pool: WorkerPool | InlinePool,
    networks: Networks | None,
    display: Display,
) -> tuple[Report, float]:
    """Find the faces of all photos that are not done, and write nothing.

    Also returns the seconds that `anonymize_folders` would take for them, reckoned from a sample
    whose copies go to a temporary folder. Arguments as there. Stops on Ctrl-C, and at the reason in
    `Report.stopped`.
    """
    report = Report()
    jobs: list[PhotoJob] = []
    for batch in batches:
        jobs += _left_to_do(_jobs(batch, settings, weights), batch.output, report)
    report.left = len(jobs)
    display.start(report)

    def count(event: Ended | Lost) -> None:
        entry = _entry(event)
        report.add(entry)
        display.photo(entry, report)

    seconds = math.nan
    started = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            step = max(1, len(jobs) // SAMPLE)
            sample = [
                replace(job, output=Path(folder, str(number)))
                for number, job in enumerate(jobs[step // 2 :: step])
            ]
            report.interrupted = _work(pool, sample, networks, lambda event: None)
            if sample:
                seconds = (time.perf_counter() - started) / len(sample) * len(jobs)
        if not report.interrupted:
            looking = replace(settings, detect_only=True)
            search = (replace(job, settings=looking) for job in jobs)
            report.interrupted = _work(pool, search, networks, count)
    except KeyboardInterrupt:
        report.interrupted = True
    except (WorkerError, _Stopped) as error:
        report.stopped = str(error)
    pool.stop()
    report.seconds = time.perf_counter() - started
    return report, seconds


def _work(
    pool: WorkerPool | InlinePool,
    jobs: Iterable[PhotoJob],
    networks: Networks | None,
    finish: Callable[[Ended | Lost], None],
) -> bool:
    """Do the jobs; tells whether Ctrl-C ended that early. Raises `WorkerError`, `_Stopped`."""
    with interruptions() as is_interrupted:
        for event in pool.run(jobs, is_interrupted):
            if isinstance(event, Asked):
                assert networks is not None, "a job asks for a network that is not loaded"
                networks.submit(event)
            elif isinstance(event, Ended) and isinstance(event.value, DiskFull):
                raise _Stopped(event.value.message)
            else:
                finish(event)
        return is_interrupted()


def _jobs(batch: Batch, settings: Settings, weights: Mapping[str, str]) -> Iterator[PhotoJob]:
    """The photos of a batch, each with what decides on its copy's pixels."""
    config = settings.config
    common = {
        "recipe": str(RECIPE),
        "method": settings.method,
        "blur": _digest(config["blur"]),
        "output": _digest(config["output"]),
    }
    if settings.method == "dartblur":
        common["generator"] = _digest([weights["generator"], config["generator"]])
    for job in batch.jobs:
        made_by = dict(common)
        if job.boxes is not None:
            made_by["labels"] = _digest(_plain(job.boxes))
        if job.detects and job.fault is None:
            made_by["detector"] = _digest([weights["detector"], config["detect"]])
        yield PhotoJob(**vars(job), settings=settings, output=batch.output, made_by=made_by)


def _left_to_do(jobs: Iterable[PhotoJob], output: Path, report: Report) -> Iterator[PhotoJob]:
    """Those of the jobs that no earlier run finished with the same settings."""
    records: dict[str, _Record] = {}
    for name in (NAME, PART):
        records |= {entry["path"]: _Record(entry) for entry in read_manifest(output / name)}
    for job in jobs:
        record = records.get(job.relative)
        changed = set() if record is None else record.changed(job)
        if record is None or not record.is_of(job) or changed:
            report.anew += bool(changed)
            report.changed = sorted({*report.changed, *changed})
            yield job
        else:
            report.done_before += 1


class _Stopped(Exception):
    """The run cannot go on."""


class _Record:
    """What an earlier run says of a photo, as much as is needed to trust its copy."""

    __slots__ = ("made_by", "output_size", "source", "status", "without_face")

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.status = entry["status"]
        self.without_face = not entry.get("faces")
        self.source = (entry.get("source_size"), entry.get("source_mtime_ns"))
        self.output_size = entry.get("output_size")
        self.made_by = entry.get("made_by")

    def is_of(self, job: PhotoJob) -> bool:
        """Tell whether it finished the photo as it is now, and the copy is there."""
        if self.status not in ("done", "skipped"):
            return False
        try:
            state = job.photo.stat()
            has_copy = self.status == "done"
            size = copy_path(job.output, job.relative).stat().st_size if has_copy else None
        except (OSError, OutputError):
            return False
        return self.source == (state.st_size, state.st_mtime_ns) and self.output_size == size

    def changed(self, job: PhotoJob) -> set[str]:
        """The names of the settings that differ; none for a photo that was not finished."""
        if not isinstance(self.made_by, dict):
            return set()
        wanted = job.made_by | (no_face_setting(job.settings) if self.without_face else {})
        return {name for name, _ in wanted.items() ^ self.made_by.items()}


def _entry(event: Ended | Lost) -> Entry:
    """What the manifest says of a job that has ended."""
    if isinstance(event, Ended):
        entry: Entry = event.value
        return remembered(entry, event.job)
    job: PhotoJob = event.job
    if not job.settings.detect_only:  # it may have died when the copy was just in place
        copy_path(job.output, job.relative).unlink(missing_ok=True)
    error = f"{job.photo}: {event.reason}"
    return remembered(Entry(job.relative, "failed", job.settings.method, error=error), job)


def _plain(boxes: Boxes | PhotoLabels) -> Any:
    """All of given boxes that decides on what they hide, in plain values."""
    if isinstance(boxes, PhotoLabels):
        return [boxes.boxes.tolist(), boxes.size, boxes.is_relative]
    return boxes.tolist()


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
