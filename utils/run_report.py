"""What a run over folders did, and how it is shown: to a person or to a program."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from tqdm import tqdm

from utils.image_files import shown
from utils.manifest import Entry
from utils.outputs import Batch


@dataclass
class Report:
    """What a run did, as far as it came.

    photos: those that were worked on, `faces` hidden in them; of these `written`, `faceless`
    (written without a face), `without_face` (not written for that) and the failures, a line each.
    done_before: photos that an earlier run finished. left: photos that were not come to.
    changed: names of settings that differ from an earlier run's, and `anew`, the photos concerned.
    stopped: why the run could not go on; None where it could.
    """

    photos: int = 0
    written: int = 0
    faces: int = 0
    faceless: int = 0
    without_face: int = 0
    failures: list[str] = field(default_factory=list)
    done_before: int = 0
    left: int = 0
    changed: list[str] = field(default_factory=list)
    anew: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    stopped: str | None = None

    def add(self, entry: Entry) -> None:
        """Count one photo."""
        self.photos += 1
        self.left -= 1
        self.faces += entry.faces
        if entry.error is not None:
            self.failures.append(entry.error)
        elif entry.status == "done":
            self.written += 1
            self.faceless += entry.faces == 0
        else:
            self.without_face += 1


class Display:
    """Shows where a run is; a context manager.

    Progress goes to stderr, with photos/s, faces and the time left; `quiet` leaves it out. With
    `as_json`, stdout gets an object a line for each photo, as in the manifest.
    """

    def __init__(self, title: str, quiet: bool, as_json: bool) -> None:
        self._title, self._quiet, self._as_json = title, quiet, as_json
        self._bar: tqdm | None = None

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, report: Report) -> None:
        """The photos are counted; the first is about to be begun."""
        if report.anew and not self._quiet:
            print(
                f"settings changed since the last run ({', '.join(report.changed)}): "
                f"{report.anew} photos are done anew",
                file=sys.stderr,
            )
        self._bar = tqdm(
            total=report.done_before + report.left,
            initial=report.done_before,
            desc=self._title,
            unit=" photos",
            smoothing=0.05,
            disable=self._quiet,
        )

    def photo(self, entry: Entry, report: Report) -> None:
        """One photo has ended."""
        if self._as_json:
            print(json.dumps(asdict(entry)), flush=True)
        if self._bar is not None:
            self._bar.set_postfix(faces=report.faces, failed=len(report.failures), refresh=False)
            self._bar.update()


def print_summary(report: Report, batches: Sequence[Batch], quiet: bool, as_json: bool) -> None:
    """Name what got no copy on stderr, then say in one line on stdout what was done.

    quiet: leave out the files of other types. as_json: the line is an object.
    """
    for note in [note for batch in batches for note in batch.notes]:
        print(shown(note), file=sys.stderr)
    others = [other.photo for batch in batches for other in batch.others]
    if not quiet:
        for photo in others:
            reason = (
                "links to folders are not followed" if photo.is_dir() else "cannot read this type"
            )
            print(f"skipped, {reason}: {shown(photo)}", file=sys.stderr)
    for failure in report.failures:
        print(f"failed, no output: {shown(failure)}", file=sys.stderr)
    if as_json:
        print(json.dumps({"summary": asdict(report) | {"skipped": len(others)}}))
        return
    faceless = f" ({report.faceless} without a face)" if report.faceless else ""
    passed_over = f"{report.without_face} without a face passed over, "
    earlier = f"{report.done_before} done before, "
    print(
        f"{report.written} photos written{faceless}, "
        f"{report.faces} faces hidden, {len(report.failures)} failures, "
        f"{passed_over if report.without_face else ''}{earlier if report.done_before else ''}"
        f"{len(others)} skipped, {report.photos / report.seconds:.2f} photos/s"
    )


def print_estimate(report: Report, seconds: float, as_json: bool) -> None:
    """Say what a dry run found.

    seconds: that the run would take, NaN where nothing tells. as_json: as in `print_summary`.
    """
    for failure in report.failures:
        print(f"would fail: {failure}", file=sys.stderr)
    if as_json:
        found = asdict(report) | {"estimated_seconds": None if math.isnan(seconds) else seconds}
        print(json.dumps({"summary": found}))
        return
    print(
        f"dry run, nothing written: {report.photos} photos, {report.faces} faces, "
        f"{report.faceless + report.without_face} photos without a face, "
        f"{len(report.failures)} would fail, {report.done_before} done before"
        + ("" if math.isnan(seconds) else f"; the rest takes about {_duration(seconds)}")
    )


def _duration(seconds: float) -> str:
    """Say a time in words, for people."""
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
