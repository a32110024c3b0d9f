"""What is done with one photo of a folder: read, hide its faces, write the copy.

Runs in the processes of `photo_pool`, as the steps of `utils.hiding`, which need no PyTorch.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.boxes import xyxy_to_xywh
from utils.hiding import Anonymized, AnonymizeError, Steps, boxes_to_hide, find_and_hide
from utils.image_files import Photo, PhotoError, read_photo, write_photo
from utils.job_steps import InlinePool
from utils.manifest import Entry, listed_scores
from utils.outputs import Job, OutputError, copy_path
from utils.widerface import LabelError
from utils.workers import WorkerPool, cores

ON_NO_FACE = ("copy", "skip", "fail")

DISK_FULL = (errno.ENOSPC, errno.EDQUOT) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)


@dataclass(frozen=True)
class Settings:
    """What is done with every photo of a run.

    on_no_face: whether a photo without a face is copied, passed over, or fails.
    detect_only: stop when the faces are known, and write nothing.
    config: as `utils.config.load_config` returns it.
    """

    method: str
    config: Mapping[str, Any]
    on_no_face: str = "copy"
    detect_only: bool = False


@dataclass(frozen=True, kw_only=True)
class PhotoJob(Job):
    """One photo, to be written to the folder `output` under the name `relative`.

    made_by: what decides on the copy's pixels; see `utils.manifest.Entry`.
    """

    settings: Settings
    output: Path
    made_by: dict[str, str]


@dataclass(frozen=True)
class DiskFull:
    """There is no room left for the copy: the run cannot go on. `message` is one line."""

    message: str


def no_face_setting(settings: Settings) -> dict[str, str]:
    """What decides, beside `PhotoJob.made_by`, on a photo without a face."""
    return {"on_no_face": settings.on_no_face}


def anonymize_photo(job: PhotoJob) -> Steps[Entry | DiskFull]:
    """Read, anonymise and write one photo.

    A failure comes back as the entry's error; there is then no copy, not even an older one.
    """
    settings = job.settings
    try:
        return (yield from _anonymized(job))
    except (OSError, OutputError, PhotoError) as error:  # their messages name the file
        cause = error.__context__ if isinstance(error, PhotoError) else error
        if isinstance(cause, OSError) and cause.errno in DISK_FULL:
            return DiskFull(f"the disk of {job.output} is full")
        reason = str(error)
    except (AnonymizeError, LabelError) as error:
        reason = f"{job.photo}: {error}"
    except Exception as error:  # out of memory, say: the photo is not known to be anonymous
        reason = f"{job.photo}: " + " ".join(f"{type(error).__name__}: {error}".split())
    return Entry(job.relative, "failed", settings.method, error=reason)


def _anonymized(job: PhotoJob) -> Steps[Entry]:
    settings = job.settings
    target = copy_path(job.output, job.relative)
    if not settings.detect_only:
        target.unlink(missing_ok=True)
    if job.fault is not None:
        raise PhotoError(f"{job.photo}: {job.fault}")
    # Before it is read: a change while it is read makes the next run read it again.
    state = job.photo.stat() if job.photo.exists() else None
    photo = read_photo(
        job.photo,
        max_pixels=round(settings.config["input"]["max_megapixels"] * 1e6),
        keep_metadata=settings.config["output"]["keep_metadata"],
    )
    given = job.boxes_on(*photo.pixels.shape[:2])
    if settings.detect_only:
        boxes, scores = yield from boxes_to_hide(photo.pixels, given, job.detects)
        result = Anonymized(photo.pixels, boxes, scores, [])
    else:
        result = yield from find_and_hide(
            photo.pixels, given, settings.method, settings.config, job.detects
        )
    status, size = "done", None
    if not len(result.boxes) and settings.on_no_face != "copy":
        if settings.on_no_face == "fail":
            raise AnonymizeError("no face in it (--on-no-face fail)")
        status = "skipped"
        result.flags.append("no_face")
    elif not settings.detect_only:
        _write(target, photo, result, settings.config["output"])
        size = target.stat().st_size
    return Entry(
        job.relative,
        status,
        settings.method,
        output=job.relative if size is not None else None,
        source="detector" if job.boxes is None else job.source,
        faces=len(result.boxes),
        boxes=xyxy_to_xywh(result.boxes).round(3).tolist(),
        scores=None if result.scores is None else listed_scores(result.scores),
        flags=[*photo.flags, *result.flags],
        source_size=None if state is None else state.st_size,
        source_mtime_ns=None if state is None else state.st_mtime_ns,
        output_size=size,
        made_by=job.made_by | ({} if len(result.boxes) else no_face_setting(settings)),
    )


def _write(target: Path, photo: Photo, result: Anonymized, coding: Mapping[str, Any]) -> None:
    write_photo(
        target,
        result.pixels,
        photo.icc_profile,
        jpeg_quality=coding["jpeg_quality"],
        subsampling=coding["jpeg_subsampling"],
        traits=photo.traits,
        opaque=result.boxes,
    )


def photo_pool(count: int | None, jobs: int, timeout: float) -> WorkerPool | InlinePool:
    """Prepare the processes that do everything but the networks; they come up on entering.

    count: of processes; 0 for this one alone, None for as many as the cores are good for. jobs: how
    many photos there are. timeout: seconds for one, to which 2 s are added for each MB of its file.
    """
    if count == 0:
        return InlinePool(anonymize_photo)

    def seconds(job: PhotoJob) -> float:
        try:
            return timeout + 2e-6 * job.photo.stat().st_size
        except OSError:
            return timeout

    workers = min(count or min(cores(), 16), max(jobs, 1))
    # Enough for the next calls of the generator to be full while the last ones are written.
    return WorkerPool(anonymize_photo, workers, seconds, in_flight=16 + 2 * workers)
