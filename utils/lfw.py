"""Labeled Faces in the Wild on disk: `root/<person>/*.jpg`, the person's face in the centre."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HOW_TO_GET = (
    "get the deep-funneled images of Labeled Faces in the Wild, research use only, and keep "
    "their tree: one folder a person"
)


class LfwError(Exception):
    """The photos cannot serve for the measurement; the message is one line."""


def read_people(root: Path, photos: int = 4) -> dict[str, list[Path]]:
    """List the people under `root` with at least `photos` photos, the first `photos` of each.

    Both in the order of their names. Raises `LfwError` where there is no such folder or fewer
    than two such people.
    """
    if not root.is_dir():
        raise LfwError(f"{root}: no such folder; {HOW_TO_GET}")
    people = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        paths = sorted(folder.glob("*.jpg"))
        if len(paths) >= photos:
            people[folder.name] = paths[:photos]
    if len(people) < 2:
        raise LfwError(
            f"{root}: {len(people)} people with {photos} .jpg photos or more, 2 are needed; "
            f"{HOW_TO_GET}"
        )
    return people


def split_people(names: list[str], test: int, seed: int) -> tuple[list[str], list[str]]:
    """Draw `test` of the people; returns them and the others, both in the given order.

    Raises `LfwError` where there are too few.
    """
    if not 2 <= test < len(names):
        raise LfwError(
            f"{test} test people out of {len(names)}: take at least 2 and leave at least 1 for "
            "the training of the restoration"
        )
    drawn = set(np.random.default_rng(seed).permutation(len(names))[:test].tolist())
    chosen = [name for index, name in enumerate(names) if index in drawn]
    return chosen, [name for index, name in enumerate(names) if index not in drawn]
