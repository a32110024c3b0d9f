"""A page on which a person checks anonymised photos: what `dartblur.py --review` writes.

One HTML file that loads nothing: style, script, and reduced pictures of the copies (never of the
originals) are in it, and a Content-Security-Policy in it lets a browser run and load nothing else.
The boxes come from the manifests of the output folders. What the reviewer changes is saved by the
browser as a label file in WIDER FACE's format, which `utils.corrections` reads back.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from PIL import Image
from tqdm import tqdm

from utils.boxes import as_boxes
from utils.corrections import CORRECTED
from utils.image_files import PhotoError, read_photo
from utils.manifest import NAME, read_manifest
from utils.outputs import OutputError, copy_path
from utils.widerface import LabelError, photo_path

PER_PAGE = 1000  # photos; of the sample's photos that makes a file of some 40 MB
SIDE = 1024  # px, longest side of a picture on the page
KINDS = ("failed", "faceless", "flagged", "faces", "corrected")  # in the order of a page
_CODING = {"quality": 60, "method": 2}  # WebP: half the size of a JPEG that looks as good

_TEMPLATE = Path(__file__).with_suffix(".html")


@dataclass(frozen=True)
class Item:
    """A photo to be shown: `entry`, its line in the manifest of the output folder `folder`."""

    folder: Path
    entry: dict[str, Any]
    kind: str


@dataclass(frozen=True)
class Review:
    """What was written: `pages`, with `shown` of the `total` photos, in `size` bytes."""

    pages: list[Path]
    shown: int
    total: int
    size: int

    def __str__(self) -> str:
        names = str(self.pages[0]) + (f" to {self.pages[-1].name}" if self.pages[1:] else "")
        left = self.total - self.shown
        more = f" ({left} more with a higher --review-limit)" if left else ""
        return f"review: {names}, {self.shown} photos{more}, {self.size / 1e6:.1f} MB"


def check_review(path: Path) -> None:
    """Make sure, before hours of work, that the page can be written. Raises `OutputError`."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"{path}: the review page must be a file named *.html")
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{path}: not a place for a file; make the folder {path.parent} first")


def write_review(path: Path, folders: Sequence[Path], limit: int = PER_PAGE) -> Review:
    """Write the page about all photos in the manifests of some output folders.

    Up to `limit` photos are shown: each kind of doubt gets the same room, and leaves to the others
    what it does not need. More than `PER_PAGE` are spread over `NAME.html`, `NAME-2.html` and so
    on, the most doubtful of each kind first. Raises `OutputError`, or OSError where a page cannot
    be written.
    """
    kinds, names = _sorted_items(folders, limit)
    repeated = {name for name, count in names.items() if count > 1}
    total = names.total()
    shown = min(total, limit)
    starts = range(0, max(shown, 1), PER_PAGE)
    pages = [path.with_name(_page_name(path, number)) for number in range(1, len(starts) + 1)]
    for number, start in enumerate(starts, start=1):
        items = _take(kinds, min(PER_PAGE, shown - start))
        extent = f"{len(items):,} of {total:,} photos, the most doubtful first"
        if shown < total:
            extent += f"; {total - shown:,} are on no page (a higher --review-limit shows more)"
        extent += f". Made {time.strftime('%Y-%m-%d %H:%M')}."
        heading = {
            "extent": extent,
            "pages": [quote(os.fsencode(page.name)) for page in pages],
            "number": number,
            "download": f"{pages[number - 1].stem}-corrections.txt",
        }
        _write_page(pages[number - 1], heading, items, repeated)
    return Review(pages, shown, total, sum(page.stat().st_size for page in pages))


def _page_name(path: Path, number: int) -> str:
    return path.name if number == 1 else f"{path.stem}-{number}{path.suffix}"


def _sorted_items(
    folders: Sequence[Path], limit: int
) -> tuple[dict[str, list[Item]], Counter[str]]:
    """Sort photos by kind of doubt, and within a kind by lowest score, then by name.

    Returns the first `limit` of each kind, and how often each name occurs in all.
    """
    names: Counter[str] = Counter()
    kinds: dict[str, list[Item]] = {kind: [] for kind in KINDS}
    for folder in folders:
        for entry in read_manifest(folder / NAME):
            try:
                kind = _kind(entry)
            except (KeyError, TypeError, ValueError) as error:
                raise OutputError(
                    f"{folder / NAME}: the line about {entry['path']!r} cannot be used ({error})"
                ) from None
            names[entry["path"]] += 1
            kinds[kind].append(Item(folder, entry, kind))
            if len(kinds[kind]) >= 2 * limit + 1000:  # a large folder's lines fill the memory
                kinds[kind] = sorted(kinds[kind], key=_doubt)[:limit]
    return {kind: sorted(items, key=_doubt)[:limit] for kind, items in kinds.items()}, names


def _kind(entry: dict[str, Any]) -> str:
    """Tell the kind of doubt about a photo. Raises KeyError, TypeError or ValueError."""
    boxes, scores = as_boxes(entry["boxes"]), entry["scores"]
    if scores is not None and len(scores) != len(boxes):
        raise ValueError("it has not as many scores as boxes")
    if entry["status"] != "done":
        return "failed"
    if entry["source"] == CORRECTED:
        return "corrected"
    if len(boxes) == 0:
        return "faceless"
    return "flagged" if entry["flags"] else "faces"


def _doubt(item: Item) -> tuple[bool, float, str]:
    """Sort key: what should have been copied and was not, low scores, boxes without a score."""
    scores = [score for score in item.entry["scores"] or [] if score is not None]
    return item.entry["status"] == "skipped", min(scores, default=2.0), item.entry["path"]


def _take(kinds: dict[str, list[Item]], room: int) -> list[Item]:
    """Take the first items of each kind out of `kinds`, `room` in all, evenly."""
    shares = {}
    for index, kind in enumerate(sorted(KINDS, key=lambda kind: len(kinds[kind]))):
        shares[kind] = min(len(kinds[kind]), room // (len(KINDS) - index))
        room -= shares[kind]
    taken = []
    for kind in KINDS:
        taken += kinds[kind][: shares[kind]]
        del kinds[kind][: shares[kind]]
    return taken


def _write_page(
    path: Path, heading: dict[str, Any], items: Sequence[Item], repeated: set[str]
) -> None:
    """Fill the template; the page appears under its name complete or not at all."""
    style, script = (_TEMPLATE.with_suffix(end).read_text("utf-8") for end in (".css", ".js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    before, after = _TEMPLATE.read_text("utf-8").split("{{photos}}")
    parts = {"policy": policy, "style": style, "page": _json(heading), "script": script}
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(_filled(before, parts))
            for item in tqdm(items, desc=path.name, unit=" photos", disable=None):
                _write_photo(file, item, repeated)
            file.write(_filled(after, parts))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _filled(template: str, parts: dict[str, str]) -> str:
    for name, text in parts.items():
        template = template.replace("{{" + name + "}}", text)
    return template


def _hash(text: str) -> str:
    """Name a text as a Content-Security-Policy does."""
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _json(value: Any) -> str:
    """Write JSON that may stand inside a <script>: nothing in it can end the element."""
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c")


def _write_photo(file: TextIO, item: Item, repeated: set[str]) -> None:
    entry = item.entry
    label, fault = _label_name(item, repeated)
    photo = {
        "path": entry["path"],
        "kind": item.kind,
        "boxes": entry["boxes"],
        "scores": entry["scores"],
        "flags": entry["flags"],
        "folder": Path(*item.folder.parts[-2:]).as_posix(),
        "label": label,
        "fault": fault,
    }
    try:
        photo |= _picture(item)
    except (OutputError, PhotoError) as error:  # it may be there, but nobody can look at it
        photo |= {"kind": "failed", "image": None, "error": str(error)}
    file.write(f'<script type="application/json" class="photo">{_json(photo)}</script>\n')


def _picture(item: Item) -> dict[str, Any]:
    """Return the copy as a data URI, its size in pixels; or why there is none.

    Raises PhotoError for a copy that cannot be read, `OutputError` for one out of the folder.
    """
    if item.entry["output"] is None:
        by_type = "no copy: files of this type cannot be read"
        without_face = "no face in it, so no copy (--on-no-face skip)"
        reason = without_face if "no_face" in item.entry["flags"] else by_type
        reason = item.entry["error"] or reason
        return {"image": None, "error": reason}
    pixels = read_photo(copy_path(item.folder, item.entry["output"])).pixels
    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", **_CODING)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    height, width = pixels.shape[:2]
    return {"image": f"data:image/webp;base64,{data}", "width": width, "height": height}


def _label_name(item: Item, repeated: set[str]) -> tuple[str | None, str]:
    """Return the photo's name in a label file; or None, and why it cannot stand in one."""
    name = item.entry["path"]
    if name in repeated:
        return None, (
            "Cannot be corrected here: another folder has a photo of this name. "
            "Review one folder at a time."
        )
    try:
        photo_path(item.folder, name)
    except LabelError as error:
        return None, (
            f"Cannot be corrected: its name cannot stand in a label file ({error}). "
            "Rename the photo and run again."
        )
    # Without `./` the file would start like one of another format, or lose the space.
    return f"./{name}" if name.startswith(("#", " ")) else name, ""
