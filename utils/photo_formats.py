"""What a photo is to this program: its pixels, what its copy keeps, and the file formats known."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""Suffix to Pillow's name of the format."""

PHOTO_SUFFIXES = frozenset(FORMATS)

# What a person would call a photo or a film but this program cannot read. To be reported, since
# the faces in it stay as they are.
_OTHER_SUFFIXES = (
    ".heic .heif .avif .gif .apng .jxl .jp2 .j2k .mpo .psd .tga .ppm "
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .raw "
    ".mp4 .m4v .mov .avi .mkv .webm .wmv .flv .mpg .mpeg .mts .m2ts .3gp .ogv"
)
OTHER_SUFFIXES = frozenset(_OTHER_SUFFIXES.split())

MAX_PIXELS = 128_000_000
"""Most pixels that a photo may have by default; `input.max_megapixels` of config.yaml."""


class PhotoError(Exception):
    """A photo cannot be read or written; the message is one line that names the file."""


@dataclass(frozen=True)
class Traits:
    """What a copy has in common with its original, beside the pixels and the ICC profile.

    file_format: Pillow's name of the format that the file really has, whatever its suffix.
    is_grey: one channel of grey, not three of colour.
    alpha: uint8 `[H, W]`, upright, 255 for opaque; None where everything is opaque.
    png_colour: chunks of a PNG (name, content) that say what its numbers mean as colours.
    exif, xmp: cleaned metadata (`utils.metadata`); None unless it was asked for and is there.
    """

    file_format: str
    is_grey: bool = False
    alpha: Pixels | None = None
    png_colour: tuple[tuple[bytes, bytes], ...] = ()
    exif: bytes | None = None
    xmp: bytes | None = None


@dataclass(frozen=True)
class Photo:
    """A photo as the program works on it.

    pixels: uint8 `[H, W, 3]`, RGB, upright; grey ones have three equal channels.
    icc_profile: a profile for the channels that `traits` names (RGB or grey).
    flags: what was not kept as it was, for the manifest: "wrong_suffix" (the copy has the format
        of the file's content, not of its name), "reduced_to_8_bits", "converted_from_cmyk",
        "metadata_unreadable" (metadata was to be kept, but some of it is broken).
    """

    pixels: Pixels
    icc_profile: bytes | None
    traits: Traits
    flags: tuple[str, ...] = ()


def shown(text: object) -> str:
    """Escape what is not printable: a file name may hold line breaks, commands for a terminal, or
    bytes that are no text.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in str(text)
    )


def one_line(error: BaseException) -> str:
    """Return an exception's message on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
