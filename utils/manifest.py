"""The record of an anonymised folder: `manifest.jsonl`, a line of JSON for each photo."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
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
    status: "done", "failed" (there is no output) or "skipped" (of a type that cannot be read, or
        without a face where those are passed over: flag "no_face").
    method: how faces were hidden.
    output: the copy, relative to the manifest's folder; None without one.
    source: "labels", "detector", "both" or "corrections", where the boxes come from; None where it
        did not come to that.
    faces: how many boxes were hidden.
    boxes: those, as [x, y, w, h] in pixels of the upright photo; detected ones as enlarged. Of a
        photo that failed: the corrected ones, which the next run is to hide.
    scores: the detector's face probabilities, None for labelled boxes; None alone where all are.
    flags: see `utils.hiding.Anonymized`.
    error: why there is no output; None with one.
    source_size, source_mtime_ns: the photo's file when it was read, in bytes and in nanoseconds
        since 1970; output_size: the copy's, in bytes.
    made_by: digests of all that decides on the copy, by name: settings, weights, labelled boxes.
        While they, the photo's file and the copy's size stay, the copy is not made again.
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
    source_size: int | None = None
    source_mtime_ns: int | None = None
    output_size: int | None = None
    made_by: dict[str, str] | None = None


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
        # Unbuffered: a line that a full disk refused must not come back when the file is closed.
        self._file = self._part.open("xb", buffering=0)
        return self

    def add(self, entry: Entry) -> None:
        """Append the line of one photo, whose copy is whole on the disk by now."""
        line = (json.dumps(asdict(entry)) + "\n").encode()
        while line:
            line = line[self._file.write(line) :]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._fold()

    def _fold(self) -> None:
        lines: dict[
            str, str
        ] = {}  # as text: the lines of 200,000 photos fit into memory, their objects hardly
        for path in (self._whole, self._part):
            lines |= {entry["path"]: json.dumps(entry) for entry in read_manifest(path)}
        temporary = self._whole.with_name(f".{NAME}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(f"{lines[name]}\n" for name in sorted(lines))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._whole)
        finally:
            temporary.unlink(missing_ok=True)
        self._part.unlink(missing_ok=True)


def read_manifest(path: Path) -> Iterator[dict[str, Any]]:
    """Read the entries of a manifest, one after the other; none where it is missing.

    What is no entry is left out: a crash can leave half a line.
    """
    try:
        file = path.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.keys() >= {"path", "status", "method"}:
                yield entry


def holds_manifest(folder: Path) -> bool:
    """Tell whether a run of ours wrote to this folder, be it one that crashed."""
    whole = folder / NAME
    return (folder / PART).is_file() or (
        whole.is_file() and (whole.stat().st_size == 0 or any(True for _ in read_manifest(whole)))
    )
