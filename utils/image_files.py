"""Photos on disk: find, read, write."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from utils.boxes import as_boxes, pixel_boxes
from utils.photo_decoding import decode
from utils.photo_encoding import encode, jpeg_bytes
from utils.photo_formats import (
    FORMATS,
    MAX_PIXELS,
    OTHER_SUFFIXES,
    PHOTO_SUFFIXES,
    Photo,
    PhotoError,
    Pixels,
    Traits,
    one_line,
    shown,
)

__all__ = [
    "OTHER_SUFFIXES",
    "PHOTO_SUFFIXES",
    "Photo",
    "PhotoError",
    "Pixels",
    "Traits",
    "find_photos",
    "jpeg_coded",
    "read_photo",
    "shown",
    "write_photo",
]


def read_photo(path: Path, max_pixels: int = MAX_PIXELS, keep_metadata: bool = False) -> Photo:
    """Read a whole photo as 8-bit RGB, turned as its EXIF orientation says.

    The content decides on the format, not the name. See `utils.photo_decoding.decode` for what is
    kept, reduced and refused, and `utils.metadata` for what `keep_metadata` keeps. Raises
    PhotoError, whose message begins with the path, for a file that is missing, no file (a folder,
    a pipe), empty, or refused; more than `max_pixels` are, before they are decoded.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PhotoError("not a file")
        if not status.st_size:
            raise PhotoError("empty file, 0 bytes")
        # 16 bits in four channels, uncoded, and much metadata.
        if status.st_size > 8 * max_pixels + (64 << 20):
            raise PhotoError(
                f"too large, {status.st_size >> 20} MiB, for a photo of at most "
                f"{max_pixels / 1e6:g} megapixels (input.max_megapixels)"
            )
        photo = decode(path.read_bytes(), max_pixels, keep_metadata)
    except PhotoError as error:
        raise PhotoError(f"{shown(path)}: {error}") from None
    except FileNotFoundError:
        reason = "a link to nothing" if path.is_symlink() else "no such file"
        raise PhotoError(f"{shown(path)}: {reason}") from None
    except Image.UnidentifiedImageError:
        formats = ", ".join(dict.fromkeys(FORMATS.values()))
        raise PhotoError(
            f"{shown(path)}: not a picture of a known format ({formats}), or broken"
        ) from None
    except Image.DecompressionBombError:  # Pillow found it before we did
        raise PhotoError(
            f"{shown(path)}: too many pixels, above the limit of {max_pixels / 1e6:g} megapixels "
            "(input.max_megapixels)"
        ) from None
    except OSError as error:  # its own message repeats the name
        raise PhotoError(f"{shown(path)}: cannot be read ({_reason(error)})") from None
    except Exception as error:  # Pillow's decoders raise almost any type on a broken file
        raise PhotoError(f"{shown(path)}: cannot be read ({shown(one_line(error))})") from None
    if FORMATS.get(path.suffix.lower()) != photo.traits.file_format:
        photo = replace(photo, flags=("wrong_suffix", *photo.flags))
    return photo


def write_photo(
    path: Path,
    pixels: Pixels,
    icc_profile: bytes | None = None,
    jpeg_quality: int = 95,
    subsampling: str = "4:4:4",
    traits: Traits | None = None,
    opaque: ArrayLike | None = None,
) -> None:
    """Write uint8 `[H, W, 3]` RGB to `path`, making its folders.

    `traits`: those of the original (`Photo.traits`), which the copy gets too; without them it is
    RGB in the format of its suffix. `opaque`: the boxes `[N, 4]` as (x1, y1, x2, y2) that hold
    hidden faces, which alpha must not show either; they become opaque. They must be given where
    `traits` has alpha, be it none. No metadata but the ICC profile and what is in `traits`; BMP
    has no place for any. `jpeg_quality` and `subsampling` concern JPEG only.

    The file appears under its name complete or not at all. Raises PhotoError.
    """
    try:
        data = _encoded(path, pixels, icc_profile, jpeg_quality, subsampling, traits, opaque)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Short, so that it fits where the name itself fits; ends in what find_photos ignores.
        # The same for every try: what a killed run leaves is written over by the next.
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]
        temporary = path.with_name(f".{digest}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise PhotoError(f"{shown(path)}: cannot be written ({_reason(error)})") from None


def _encoded(
    path: Path,
    pixels: Pixels,
    icc_profile: bytes | None,
    jpeg_quality: int,
    subsampling: str,
    traits: Traits | None,
    opaque: ArrayLike | None,
) -> bytes:
    file_format = FORMATS.get(path.suffix.lower())
    if file_format is None:
        known = " ".join(sorted(PHOTO_SUFFIXES))
        raise PhotoError(f"{shown(path)}: cannot write this type of file; use one of {known}")
    if traits is None:
        traits = Traits(file_format)
    if traits.alpha is not None:
        if opaque is None:
            raise ValueError("a photo with alpha is written with its boxes")
        alpha = traits.alpha.copy()
        for x1, y1, x2, y2 in pixel_boxes(as_boxes(opaque), *alpha.shape).tolist():
            alpha[y1:y2, x1:x2] = 255
        traits = replace(traits, alpha=alpha)
    return encode(pixels, traits, icc_profile, jpeg_quality, subsampling)


def jpeg_coded(pixels: Pixels, quality: int) -> Pixels:
    """Return what is read back from `pixels`, uint8 `[H, W, 3]` RGB, as JPEG 4:2:0 of `quality`."""
    data = jpeg_bytes(pixels, quality, "4:2:0")
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.array(image, dtype=np.uint8)


def find_photos(root: Path) -> tuple[list[Path], list[Path]]:
    """Search `root` and its subfolders.

    Returns, both sorted, the photos (by suffix), and what a caller should report as left alone:
    pictures and films of other types, links to folders, which are not followed, and the shadows
    "._NAME" that macOS leaves beside photos. Raises PhotoError where a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise PhotoError(f"{shown(error.filename)}: cannot be listed ({_reason(error)})") from None

    photos, others = [], []
    for folder, subfolders, names in os.walk(root, onerror=refuse, followlinks=False):
        others += [path for name in subfolders if (path := Path(folder, name)).is_symlink()]
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in PHOTO_SUFFIXES and not name.startswith("._"):
                photos.append(path)
            elif path.suffix.lower() in PHOTO_SUFFIXES | OTHER_SUFFIXES:
                others.append(path)
    return sorted(photos), sorted(others)


def _reason(error: OSError) -> str:
    return error.strerror or shown(one_line(error))
