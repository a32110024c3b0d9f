"""Photos of all kinds that the program may meet, made here."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, TiffImagePlugin

from tests.photo_folders import picture
from utils.blur import Pixels

Maker = Callable[[Path], object]


@cache
def srgb_profile() -> bytes:  # it holds the time when it was made
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@cache
def p3_profile() -> bytes:
    """Display P3: the curves and the white of sRGB, other primaries (its own, for D50)."""
    profile = bytearray(srgb_profile())
    primaries = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    (count,) = struct.unpack_from(">I", profile, 128)
    for row in range(count):
        name, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * row)
        if name in primaries:
            numbers = [round(value * 65536) for value in primaries[name]]
            struct.pack_into(">3i", profile, offset + 8, *numbers)
    return bytes(profile)


def grey_profile() -> bytes:
    curve = struct.pack(">4s4xIH2x", b"curv", 1, round(2.2 * 256))
    return _profile(b"GRAY", b"XYZ ", {b"kTRC": curve})


def cmyk_profile() -> bytes:
    """Ink of any colour is grey to it: lighter the less of it there is."""
    grid = np.indices((2, 2, 2, 2)).reshape(4, -1).T  # c, m, y, k
    light = 255 - np.minimum(grid.sum(axis=1) * 64, 255)
    neutral = np.full_like(light, 128)
    ramp = bytes(range(256))
    lut = struct.pack(">4s4xBBBx9i", b"mft1", 4, 3, 2, 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    lut += ramp * 4 + np.stack([light, neutral, neutral], axis=1).astype(np.uint8).tobytes()
    return _profile(b"CMYK", b"Lab ", {b"A2B0": lut + ramp * 3})


def _profile(channels: bytes, space: bytes, tags: dict[bytes, bytes]) -> bytes:
    white = struct.pack(">4s4x3i", b"XYZ ", 63190, 65536, 54061)
    tags = {b"cprt": b"text\0\0\0\0none\0\0\0\0", b"wtpt": white, **tags}
    table, content = struct.pack(">I", len(tags)), b""
    start = 132 + 12 * len(tags)
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, start + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    header = struct.pack(">I4xI4s4s4s12x4s", start + len(content), 0x02400000, b"prtr", channels,
                         space, b"acsp")  # fmt: skip
    header = header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + table + content


def pillow(pixels: NDArray[Any], mode: str | None = None, **options: Any) -> Maker:
    """Save through Pillow, in the format of the suffix unless `format` is among the options."""

    def make(path: Path) -> None:
        image = Image.fromarray(pixels)
        (image if mode is None else image.convert(mode)).save(path, **options)

    return make


def opencv(pixels: NDArray[Any]) -> Maker:
    return lambda path: path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


def content(data: bytes) -> Maker:
    return lambda path: path.write_bytes(data)


def coded(
    file_format: str, pixels: NDArray[Any] | None = None, mode: str | None = None, **options: Any
) -> bytes:
    image = Image.fromarray(picture(0) if pixels is None else pixels)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, file_format, **options)
    return buffer.getvalue()


def with_alpha(pixels: Pixels, alpha: Pixels) -> NDArray[np.uint8]:
    return np.dstack([pixels, alpha])


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_with(data: bytes, *chunks: bytes) -> bytes:
    """Put chunks behind the head of a PNG."""
    return data[:33] + b"".join(chunks) + data[33:]


def damaged(data: bytes, length: int = 600) -> bytes:
    """Fill the middle of the coded pixels with zeros; the file keeps its length."""
    start = max(data.rfind(b"\xff\xda"), 0)
    start += (len(data) - start) // 2
    return data[:start] + bytes(length) + data[start + length :]


def many_scans(scans: int) -> bytes:
    """A progressive JPEG with a scan that adds nothing repeated."""
    data = coded("JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def pages(*frames: Pixels, preview: bool = False, first: bool = False) -> Maker:
    """A TIFF of several pages; `preview` says that all but the first are, `first` that it is."""

    def make(path: Path) -> None:
        with TiffImagePlugin.AppendingTiffWriter(str(path), new=True) as writer:
            for number, frame in enumerate(frames):
                info = TiffImagePlugin.ImageFileDirectory_v2()
                info[254] = int(first if number == 0 else preview)
                Image.fromarray(frame).save(writer, "TIFF", tiffinfo=info)
                writer.newFrame()

    return make


def frames(file_format: str) -> Maker:
    images = [Image.fromarray(picture(seed)) for seed in range(3)]
    return lambda path: images[0].save(
        path, file_format, save_all=True, append_images=images[1:], duration=100
    )


def bmp_with_alpha(layers: NDArray[np.uint8]) -> bytes:
    """A BMP of version 4, whose header gives a mask for alpha. `layers`: `[H, W, 4]` RGBA."""
    height, width = layers.shape[:2]
    pixels = layers[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = (0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII4I", 108, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0,
                         *masks).ljust(108, b"\0")  # fmt: skip
    return struct.pack("<2sIHHI", b"BM", 122 + len(pixels), 0, 0, 122) + header + pixels


def plain_png(width: int, height: int, rows: int | None = None) -> bytes:
    """A black PNG of one bit a pixel; `rows` is how many it really holds."""
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = bytes((1 + -(-width // 8)) * (height if rows is None else rows))
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(pixels, 1)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def tiff_with_tile(side: int) -> bytes:
    """A TIFF of one pixel in a tile of `side` x `side`, which a decoder allocates."""
    tags = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: 8}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return struct.pack("<2sHIQH", b"II", 42, 16, 0, len(tags)) + rows + bytes(4)


def exif_turn(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()
