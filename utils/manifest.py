"""The record of an anonymised folder: `manifest.jsonl`, a line of JSON for each photo."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "manifest.jsonl"
PART = "manifest.jsonl.part"


@dataclass(frozen=True)
class Entry:
    """What became of one photo; the fields are the keys of its line.

    path: the photo, relative to the folder that was anonymised, with `/`.
    status: "done", "failed" (there is no output) or "skipped" (of a type that cannot be read).
    method: how faces were hidden.
    output: the copy, relative to the manifest's folder; None without one.
    source: "labels", "detector" or "both", where the boxes come from; None where it did not come
        to that.
    faces: how many boxes were hidden.
    boxes: those, as [x, y, w, h] in pixels of the upright photo; detected ones as enlarged.
    scores: the detector's face probabilities, None for labelled boxes; None alone where all are.
    flags: see `models.anonymize.Anonymized`.
    error: why there is no output; None with one.
    """

    path: str
    status: str
    method: str
    output: str | None = None
    source: str | None = None
    faces: int = 0
    boxes: list[list[float]] = field(default_factory=list)
    scores: list[float | None] | None = None
    flags: list[str] = field(default_factory=list)
    error: str | None = None


def listed_scores(scores: NDArray[np.float64]) -> list[float | None]:
    """Scores [N] as `Entry` has them, from an array with NaN for labelled boxes."""
    return [None if math.isnan(score) else score for score in scores.round(4).tolist()]


class Manifest:
    """Writes a folder's manifest; a context manager.

    While a run lasts its lines go to `manifest.jsonl.part`, which thus survives a crash. On
    leaving, and on entering where a crashed run left its part, they are put into
    `manifest.jsonl`, where a newer line replaces an older one about the same photo and the
    lines of other photos stay. Raises OSError.
    """

    def __init__(self, folder: Path) -> None:
        self._whole, self._part = folder / NAME, folder / PART

    def __enter__(self) -> Manifest:
        self._whole.parent.mkdir(parents=True, exist_ok=True)
        if self._part.exists():
            self._fold()
        self._file = self._part.open("x", encoding="utf-8")
        return self

    def add(self, entry: Entry) -> None:
        """Append the line of one photo."""
        self._file.write(json.dumps(asdict(entry)) + "\n")
        self._file.flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._fold()

    def _fold(self) -> None:
        lines = {entry["path"]: entry for entry in read_manifest(self._whole)}
        lines |= {entry["path"]: entry for entry in read_manifest(self._part)}
        temporary = self._whole.with_name(f".{NAME}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(lines[path]) + "\n" for path in sorted(lines))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._whole)
        self._part.unlink(missing_ok=True)


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a manifest; none where it is missing.

    What is no entry is left out: a crash can leave half a line.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    entries = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.keys() >= {"path", "status", "method"}:
            entries.append(entry)
    return entries


def holds_manifest(folder: Path) -> bool:
    """Tell whether a run of ours wrote to this folder, be it one that crashed."""
    whole = folder / NAME
    return (folder / PART).is_file() or (
        whole.is_file() and (whole.stat().st_size == 0 or bool(read_manifest(whole)))
    )
