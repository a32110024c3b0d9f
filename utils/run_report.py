"""What a run over folders did, and how it is shown: to a person or to a program."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field

from tqdm import tqdm

from utils.manifest import Entry


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
