"""WIDER FACE's official evaluation lists, written for a few drawn photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat  # type: ignore[import-untyped]

Listed = dict[str, tuple[list[list[float]], dict[str, list[int]]]]
"""By photo `event/name.jpg`: boxes x y w h, and which of them, from 1, each set counts."""


def cells(values: list[Any]) -> np.ndarray:
    """A column of MATLAB's cells."""
    column = np.empty((len(values), 1), dtype=object)
    for index, value in enumerate(values):
        column[index, 0] = value
    return column


def write_lists(folder: Path, listed: Listed) -> Path:
    """Write the four files the way the official ones are nested: events, photos, faces."""
    folder.mkdir(parents=True, exist_ok=True)
    events = sorted({path.split("/")[0] for path in listed})
    groups = [[path for path in listed if path.split("/")[0] == event] for event in events]
    shared = {
        "event_list": cells(events),
        "file_list": cells(
            [cells([Path(path).stem for path in group]) for group in groups],
        ),
    }
    boxes = [
        cells([np.array(listed[path][0], dtype=np.int32).reshape(-1, 4) for path in group])
        for group in groups
    ]
    savemat(folder / "wider_face_val.mat", {**shared, "face_bbx_list": cells(boxes)})
    for name in ("easy", "medium", "hard"):
        chosen = [
            cells([np.array(listed[path][1][name], dtype=np.uint8)[:, None] for path in group])
            for group in groups
        ]
        savemat(folder / f"wider_{name}_val.mat", {**shared, "gt_list": cells(chosen)})
    return folder
