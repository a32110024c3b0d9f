"""Turns the bytes of a photo file into pixels. Pillow does the work, simplejpeg that of JPEGs.

An anonymiser must not hand on what it did not look at: what is broken, is more than one picture,
or would not survive in 8-bit grey or RGB with an alpha channel is refused with a `PhotoError`.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms

from utils.metadata import (
    MetadataError,
    clean_exif,
    clean_xmp,
    orientation,
    usable_profile,
)
from utils.photo_formats import FORMATS, Photo, PhotoError, Pixels, Traits, one_line

_GREY_MODES = frozenset({"1", "L", "LA", "La", "I;16", "I;16L", "I;16B"})
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
_MODES = _GREY_MODES | _ALPHA_MODES | {"P", "RGB", "YCbCr", "CMYK"}

# The longest scripts of progressive JPEG in use have some forty scans. Each costs a pass over the
# whole picture, so that thousands of empty ones keep a decoder busy for hours.
_MOST_SCANS = 100
_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")  # not a stuffed byte, not a restart
_WITHOUT_LENGTH = frozenset([0x01, *range(0xD0, 0xD9)])

_DEFLATED = (8, 32946)  # the tag Compression
_MOST_PAGES = 16
_DARKEST = 16
_SOFT_EDGE = 9  # px; alpha may fade over this width

_PNG_COLOUR_CHUNKS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4}  # name and length


def decode(data: bytes, max_pixels: int, keep_metadata: bool) -> Photo:
    """Decode a whole photo file, turned as its EXIF orientation says (XMP is not asked).

    Kept: grey as grey, alpha, an ICC profile of the right kind, a PNG's other colour chunks, and
    with `keep_metadata` the cleaned EXIF and XMP. Colours that full transparency hides become
    plain: nobody sees them, so nobody could check them. Reduced with a flag (see `Photo`): 16 bits
    a channel to 8, CMYK to sRGB. Palettes become RGB, black and white becomes grey.

    Raises `PhotoError`, its message without the file's name, for what is no picture of the known
    formats, has above `max_pixels`, is cut off or damaged as far as the format can tell, holds
    several frames or pages, or pictures in its transparency; and whatever Pillow raises.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and max_pixels > 2 * limit:  # the caller wants more than Pillow allows
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
    with warnings.catch_warnings():
        # Pillow warns at half its limit and at odd metadata; neither concerns the pixels.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values()))) as image:
            _check(image, max_pixels)
            return _decoded(data, image, keep_metadata)


def _check(image: Image.Image, max_pixels: int) -> None:
    """Refuse what is known from the file's head, before anything is decoded."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    tile = (tags.get(322, 1), tags.get(323, 1))  # a decoder allocates a whole tile
    for width, height in (image.size, tile):
        if width * height > max_pixels:
            raise PhotoError(
                f"too many pixels, {width} x {height}, above the limit of "
                f"{max_pixels / 1e6:g} megapixels (input.max_megapixels)"
            )
    if tags.get(254, 0) & 1:
        raise PhotoError("its first page is a preview; save the photo as its own file")
    frames = getattr(image, "n_frames", 1)
    # A phone's JPEG may carry a second picture (MPO), a depth map or a preview: only the first,
    # the photo, is read, and nothing else is written. Likewise the previews of a TIFF.
    if frames > 1 and image.format != "MPO":
        is_preview = []
        if image.format == "TIFF" and frames <= _MOST_PAGES:
            for frame in range(1, frames):
                image.seek(frame)
                is_preview.append(bool(image.tag_v2.get(254, 0) & 1))  # type: ignore[attr-defined]
            image.seek(0)
        if not is_preview or not all(is_preview):
            raise PhotoError(f"holds {frames} frames or pages; save the one wanted as its own file")
    if image.mode not in _MODES:
        raise PhotoError(f"colour mode {image.mode} is neither grey, RGB nor CMYK; convert it")


def _decoded(data: bytes, image: Image.Image, keep_metadata: bool) -> Photo:
    flags = []
    file_format = "JPEG" if image.format == "MPO" else str(image.format)
    # Before loading, which takes what it has used out of a TIFF.
    is_deep = _is_deep(image)
    is_grey = image.mode in _GREY_MODES
    profile = image.info.get("icc_profile")
    exif, xmp = _metadata_blocks(data, image)
    turn = 1 if file_format == "TIFF" else orientation(exif or b"")  # Pillow turns TIFFs

    if image.mode == "CMYK":
        flags.append("converted_from_cmyk")
        pixels, alpha = _from_cmyk(data, image, profile), None
        profile = None  # sRGB from here on
    elif file_format == "JPEG":
        pixels, alpha = _jpeg_pixels(data, is_grey), None
    else:
        if file_format == "TIFF":
            _check_deflated(data, image)
        if file_format == "PNG":
            with Image.open(io.BytesIO(data), formats=["PNG"]) as again:
                again.verify()  # the checksums, which loading passes over
        image.load()
        pixels, alpha = _loaded_pixels(image)
    if is_deep:
        flags.append("reduced_to_8_bits")
        if pixels.max() < _DARKEST:
            raise PhotoError("uses a small part of its 16 bits, 8 would be black; rescale it first")
    pixels = _upright(pixels, turn)
    if alpha is not None:
        alpha = _upright(alpha, turn)
        if (alpha == 255).all():
            alpha = None
        elif file_format == "BMP":
            raise PhotoError("a BMP with transparent pixels; flatten it first")
        else:
            pixels = _without_hidden_colours(pixels, alpha)

    kept: dict[str, bytes] = {}
    if keep_metadata:
        height, width = pixels.shape[:2]
        for name, block in (("exif", exif), ("xmp", xmp)):
            if block:
                try:
                    kept[name] = (
                        clean_exif(block, width, height) if name == "exif" else clean_xmp(block)
                    )
                except MetadataError:
                    flags.append("metadata_unreadable")
    traits = Traits(
        file_format,
        is_grey,
        alpha,
        _png_colour(data) if file_format == "PNG" else (),
        kept.get("exif"),
        kept.get("xmp"),
    )
    channels = "GRAY" if is_grey else "RGB"
    return Photo(pixels, usable_profile(profile, channels), traits, tuple(dict.fromkeys(flags)))


def _metadata_blocks(data: bytes, image: Image.Image) -> tuple[bytes | None, bytes | None]:
    exif = data if image.format == "TIFF" else image.info.get("exif")
    xmp = image.info.get("xmp")
    if isinstance(exif, bytes) and exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    if isinstance(xmp, str):
        xmp = xmp.encode("utf-8", "surrogateescape")
    return (
        exif if isinstance(exif, bytes) else None,
        xmp if isinstance(xmp, bytes) else None,
    )


def _is_deep(image: Image.Image) -> bool:
    """Tell 16 bits a channel from 8 (Pillow cuts them to 8 for RGB, without a word).

    Raises PhotoError for depths that are neither, and where a transparent colour, which is given
    with 16 bits, would be compared with 8.
    """
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, (1,))  # BitsPerSample
        depth = max(bits if isinstance(bits, tuple) else (bits,))
        if depth not in (1, 2, 4, 8, 16):
            raise PhotoError(f"has {depth} bits a channel; convert it to 8 bits first")
        return bool(depth == 16)
    is_deep = image.format == "PNG" and (
        image.mode.startswith("I")
        or any(";16" in str(tile[3]) for tile in getattr(image, "tile", []))
    )
    if is_deep and "transparency" in image.info:
        raise PhotoError("16 bits and a transparent colour; convert it to 8 bits first")
    return is_deep


def _jpeg_pixels(data: bytes, is_grey: bool) -> Pixels:
    """Decode a JPEG; whatever libjpeg would repair is refused."""
    _check_scans(data)
    try:
        pixels = simplejpeg.decode_jpeg(data, "GRAY" if is_grey else "RGB", strict=True)
    except ValueError as error:
        raise PhotoError(f"damaged ({one_line(error)})") from None
    return np.repeat(pixels, 3, axis=2) if is_grey else pixels


def _check_scans(data: bytes) -> None:
    """Follow the markers of a JPEG to its end. Raises PhotoError for too many scans."""
    position, scans = 2, 0
    while found := _MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker == 0xD9:
            return
        scans += marker == 0xDA
        if scans > _MOST_SCANS:
            raise PhotoError(f"more than {_MOST_SCANS} scans; save it anew")
        if marker not in _WITHOUT_LENGTH and position + 2 <= len(data):
            position += struct.unpack_from(">H", data, position)[0]


def _check_deflated(data: bytes, image: Image.Image) -> None:
    """Check the sums behind the strips or tiles of a deflated TIFF: libtiff mostly does not."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(259) not in _DEFLATED:
        return
    places = ((tags.get(273), tags.get(279)), (tags.get(324), tags.get(325)))
    left = 16 * (image.width + 1) * (image.height + 1) + (64 << 20)  # tiles reach over the edge
    for start, length in (pair for one in places if all(one) for pair in zip(*one, strict=False)):
        stream, part = zlib.decompressobj(), data[start : start + length]
        while part and not stream.eof:
            left -= len(stream.decompress(part, 1 << 20))
            part = stream.unconsumed_tail
            if left < 0:
                raise PhotoError("damaged (more data than pixels)")
        if not stream.eof:
            raise PhotoError("damaged (a strip ends too early)")


def _from_cmyk(data: bytes, image: Image.Image, profile: bytes | None) -> Pixels:
    """Convert to sRGB: through the profile, where there is one, else as browsers do."""
    if image.format == "JPEG":
        _check_scans(data)
        try:
            simplejpeg.decode_jpeg(data, "CMYK", strict=True)
        except ValueError as error:
            raise PhotoError(f"damaged ({one_line(error)})") from None
    image.load()
    profile = usable_profile(profile, "CMYK")
    if profile is None:
        return np.array(image.convert("RGB"), dtype=np.uint8)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except ImageCms.PyCMSError as error:
        raise PhotoError(f"its CMYK profile cannot be used ({one_line(error)})") from None
    return np.array(converted, dtype=np.uint8)


def _loaded_pixels(image: Image.Image) -> tuple[Pixels, Pixels | None]:
    """Return RGB and, if the picture has one, alpha."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2), None
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        layers = np.array(image.convert("RGBA"), dtype=np.uint8)
        return np.ascontiguousarray(layers[:, :, :3]), np.ascontiguousarray(layers[:, :, 3])
    if image.mode != "RGB":  # Pillow would copy it all the same
        image = image.convert("RGB")
    return np.array(image, dtype=np.uint8), None


def _upright(picture: Pixels, turn: int) -> Pixels:
    """Apply an EXIF orientation to `[H, W, ...]`."""
    if turn in (5, 6, 7, 8):
        picture = picture.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        picture = picture[:, ::-1]
    if turn in (3, 4, 7, 8):
        picture = picture[::-1]
    return np.ascontiguousarray(picture)


def _without_hidden_colours(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Make fully transparent pixels plain, and refuse a picture that only alpha shows.

    Faces are looked for in the colours. White or black, whichever stands out from the visible
    ones, makes a drawing of one colour on nothing visible there as well. Shades of alpha wider
    than a soft edge remain unseen: `PhotoError`.
    """
    is_soft = (alpha > 0) & (alpha < 255)
    kernel = np.ones((_SOFT_EDGE, _SOFT_EDGE), dtype=np.uint8)
    shades = alpha[cv2.erode(is_soft.astype(np.uint8), kernel) > 0]
    if shades.size and int(shades.max()) - int(shades.min()) > 8:
        raise PhotoError("its transparency holds shades that no search looks at; flatten it first")
    is_hidden = alpha == 0
    visible = pixels[~is_hidden]
    is_dark = visible.size and visible.mean() < 128
    result = pixels.copy()
    result[is_hidden] = 255 if is_dark else 0
    return result


def _png_colour(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Return the chunks before the pixels that tell how to show the numbers as colours."""
    found, position = [], 8
    while position + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        if name == b"IDAT":
            break
        if _PNG_COLOUR_CHUNKS.get(name) == length:
            found.append((name, data[position + 8 : position + 8 + length]))
        position += 12 + length
    return tuple(found)
