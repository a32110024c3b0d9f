"""Which photos are read, where their copies go, and which boxes they come with.

Copies mirror the tree of the originals. Every check here is made before the first photo is
touched, except that of `copy_path`, which needs the folders to be there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from utils.boxes import Boxes
from utils.image_files import OTHER_SUFFIXES, PHOTO_SUFFIXES, find_photos
from utils.manifest import holds_manifest
from utils.photo_labels import Labels, PhotoLabels
from utils.widerface import HOW_TO_GET, SPLITS, LabelError, photo_path

UNLISTED = "not in the label file (--boxes detect-missing would search it for faces)"

_LEFTOVER = re.compile(r"\.[0-9a-f]{32}\.tmp")  # the temporary names of `write_photo`


class OutputError(Exception):
    """Inputs and outputs that do not go together; the message is one line."""


@dataclass(frozen=True)
class PhotoTree:
    """Photos of one folder, and the folder that mirrors it.

    source: what is anonymised, a folder or a single photo.
    root: the folder that `photos` and `others` are relative to (with `/`).
    others: pictures and films of types that cannot be read.
    """

    source: Path
    root: Path
    output: Path
    photos: list[str]
    others: list[str]


@dataclass(frozen=True)
class Job:
    """One photo to copy into a folder under the name `relative`.

    boxes: given boxes, float64 [N, 4] as (x1, y1, x2, y2) in pixels, or labels that come down to
        such once the photo's size is known; None where they are to be found.
    fault: why this photo must not be copied; None where it may.
    source: where given boxes come from, "labels" or "corrections"; or "both": labels, and faces are
        to be found beside them.
    """

    photo: Path
    relative: str
    boxes: Boxes | PhotoLabels | None = None
    fault: str | None = None
    source: str = "labels"

    @property
    def detects(self) -> bool:
        """Whether the photo is searched for faces."""
        return self.boxes is None or self.source == "both"

    def boxes_on(self, height: int, width: int) -> Boxes | None:
        """The given boxes in pixels of the upright photo, `height` × `width`; None without any.

        Raises `LabelError` where the labels are of another size.
        """
        return self.boxes.on(height, width) if isinstance(self.boxes, PhotoLabels) else self.boxes


@dataclass
class Batch:
    """All that goes into one output folder; `others` cannot be read and are only recorded.

    notes: lines for the summary, on what the label files hold.
    """

    output: Path
    jobs: list[Job] = field(default_factory=list)
    others: list[Job] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def named_trees(paths: Sequence[Path], output: Path | None, method: str) -> list[PhotoTree]:
    """List the photos of folders and of single files.

    Without `output` a folder `NAME` is mirrored by `NAME_<method>` beside it, and a file
    `NAME.jpg` copied to the folder `NAME_<method>` beside it. With `output` everything lands
    in that folder: what a folder holds under its path in there, a file under its name.
    Raises `OutputError`; `PhotoError` where a folder cannot be listed.
    """
    trees = []
    for path in paths:
        place = path.resolve()  # gives "." and ".." a name
        if path.is_dir():
            folder = output or place.parent / f"{place.name}_{method}"
            trees.append(_folder_tree(path, folder))
        elif not path.exists():
            raise OutputError(f"{path}: no such file or folder")
        elif path.suffix.lower() not in PHOTO_SUFFIXES:
            known = " ".join(sorted(PHOTO_SUFFIXES))
            raise OutputError(f"{path}: not a photo of a type that can be read ({known})")
        else:
            folder = output or path.with_name(f"{path.stem}_{method}")
            trees.append(PhotoTree(path, path.parent, folder, [path.name], []))
    return trees


def wider_trees(data: Path, output: Path | None, method: str) -> dict[str, PhotoTree]:
    """List the photos of the WIDER FACE splits under `data`, by split.

    `data/<split>/images` is mirrored by `images_<method>` beside it, or in `output/<split>`.
    Raises `OutputError` where no split is there.
    """
    folders = {split: data / split / "images" for split in SPLITS}
    trees = {
        split: _folder_tree(folder, (output or data) / split / f"images_{method}")
        for split, folder in folders.items()
        if folder.is_dir()
    }
    if not trees:
        places = " nor ".join(str(folder) for folder in folders.values())
        raise OutputError(f"no PATH given, and neither {places} exists; {HOW_TO_GET}")
    return trees


def _folder_tree(folder: Path, output: Path) -> PhotoTree:
    photos, others = (
        [path.relative_to(folder).as_posix() for path in paths] for paths in find_photos(folder)
    )
    return PhotoTree(folder, folder, output, photos, others)


def check_outputs(trees: Sequence[PhotoTree]) -> None:
    """Make sure that no original, no foreign file and no other copy would be written over.

    Raises `OutputError` where an output lies in an input or holds one (links resolved), where
    an output folder holds files but no manifest of ours, and where two photos would get one
    name.
    """
    outputs = {tree.output.resolve(): tree.output for tree in trees}
    sources = {tree.source.resolve(): tree.source for tree in trees}
    for resolved, output in outputs.items():
        for place in (resolved, *resolved.parents):
            if place in sources:
                raise OutputError(
                    f"{output}: the output lies inside the input {sources[place]}; "
                    "choose another folder with --output"
                )
    originals = dict(sources)
    for tree in trees:
        photos = [tree.root / relative for relative in tree.photos]
        # Path.resolve raises RuntimeError at a link to itself; such a photo fails when it is read.
        links = [photo for photo in photos if photo.is_symlink()]
        originals |= {Path(os.path.realpath(photo)): photo for photo in links}
    for resolved, original in originals.items():
        for place in resolved.parents:
            if place in outputs:
                raise OutputError(
                    f"{outputs[place]}: the output folder contains the input {original}; "
                    "choose another folder with --output"
                )
    for output in outputs.values():
        if output.suffix.lower() in PHOTO_SUFFIXES or (output.exists() and not output.is_dir()):
            raise OutputError(f"{output}: the output must be a folder")
        if output.is_dir() and any(output.iterdir()) and not holds_manifest(output):
            raise OutputError(
                f"{output}: not empty, and not the output of an earlier run (no manifest.jsonl); "
                "choose another folder with --output"
            )
    _check_names(trees)


def _check_names(trees: Sequence[PhotoTree]) -> None:
    first: dict[Path, Path] = {}
    for tree in trees:
        resolved = tree.output.resolve()
        for relative in tree.photos:
            photo = tree.root / relative
            other = first.setdefault(resolved / relative, photo)
            if other is not photo:
                raise OutputError(
                    f"{other} and {photo} would both be written to {tree.output / relative}; "
                    "run them one after the other with different --output"
                )


def jobs_of(
    tree: PhotoTree, labels: Labels | None, detect_missing: bool = False, unite: bool = False
) -> list[Job]:
    """Pair the photos of a tree with their boxes.

    Without `labels` all boxes are to be found. With them, a photo that they do not list gets a
    fault, unless `detect_missing` has it searched for faces. `unite` has the photos that are listed
    searched as well, and no others: what a detector finds does not stand in for a label. A listed
    photo that is not in the tree gets a fault too, so that names in a label file lead nowhere else.
    Raises `LabelError` where a listed path leads out of the tree or is no photo's.
    """
    if labels is None:
        return [Job(tree.root / photo, photo) for photo in tree.photos]
    known = {*tree.photos, *tree.others}
    jobs = [Job(tree.root / path, path, fault=fault) for path, fault in labels.faults.items()]
    for photo in labels.photos:
        relative, fault = PurePosixPath(photo.path).as_posix(), None
        path = tree.root / relative
        if relative not in known:
            path = photo_path(tree.root, relative)
            if path.suffix.lower() not in PHOTO_SUFFIXES | OTHER_SUFFIXES:  # manifest.jsonl, say
                raise LabelError(
                    f"{path}: refused: a label names it, but it is not named as a photo"
                )
            known_otherwise = "the folder has it under another name or behind a link"
            fault = known_otherwise if path.exists() else "no such file"
        elif path.is_symlink():  # others were found inside; to resolve all takes long
            photo_path(tree.root, relative)
        jobs.append(Job(path, relative, photo, fault, "both" if unite else "labels"))
    named = {job.relative for job in jobs}
    for relative in tree.photos:
        if relative not in named:
            fault = None if detect_missing else UNLISTED
            jobs.append(Job(tree.root / relative, relative, None, fault))
    return sorted(jobs, key=lambda job: job.relative)


def batches_of(
    labelled: Iterable[tuple[PhotoTree, Labels | None]],
    detect_missing: bool = False,
    unite: bool = False,
) -> list[Batch]:
    """Gather what goes into each output folder, from trees with their labels; see `jobs_of`.

    Raises `LabelError` as `jobs_of`, and `OutputError` where there is no photo at all.
    """
    batches: dict[Path, Batch] = {}
    for tree, labels in labelled:
        jobs = jobs_of(tree, labels, detect_missing, unite)
        batch = batches.setdefault(tree.output, Batch(tree.output))
        batch.notes += labels.notes if labels else []
        batch.jobs += jobs
        named_anyway = {job.relative for job in jobs}
        batch.others += [
            Job(tree.root / other, other) for other in tree.others if other not in named_anyway
        ]
    if not any(batch.jobs for batch in batches.values()):
        others = sum(len(batch.others) for batch in batches.values())
        raise OutputError(f"no photos to anonymise ({others} files of types that cannot be read)")
    return list(batches.values())


def copy_path(output: Path, relative: str) -> Path:
    """Where a copy goes. Raises `OutputError` where a link in `output` leads out of it."""
    path = output / relative
    if not path.resolve().is_relative_to(output.resolve()):
        raise OutputError(f"{path}: a link in the output folder leads out of it")
    return path


def remove_leftovers(output: Path) -> None:
    """Remove the unfinished files of a run that was killed. Raises OSError."""
    for folder, _, names in os.walk(output, followlinks=False):
        for name in names:
            if _LEFTOVER.fullmatch(name):
                Path(folder, name).unlink(missing_ok=True)
