"""Turns pixels into the bytes of a photo file."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from utils.metadata import EXIF_HEADER
from utils.photo_formats import Pixels, Traits

_XMP_TAG = 700


def encode(
    pixels: Pixels,
    traits: Traits,
    icc_profile: bytes | None,
    jpeg_quality: int,
    subsampling: str,
) -> bytes:
    """Code uint8 `[H, W, 3]` RGB in the format of `traits`, with its alpha and metadata.

    JPEG as the caller says; WebP without loss, since its lossy mode knows 4:2:0 only, which
    smears the edge of a box; TIFF deflated, but for one with EXIF. BMP has no place for a profile
    or metadata, JPEG none for alpha. Raises OSError or ValueError where Pillow cannot code it.
    """
    image = _image(pixels)
    if traits.is_grey:
        image = image.convert("L")
    if traits.alpha is not None:
        image.putalpha(Image.fromarray(traits.alpha))
    if traits.file_format == "JPEG":
        return jpeg_bytes(image, jpeg_quality, subsampling, icc_profile, traits)
    options: dict[str, Any] = {}
    if traits.file_format != "BMP":
        options["icc_profile"] = icc_profile
        if traits.exif is not None:
            options["exif"] = traits.exif
    if traits.file_format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        for name, content in traits.png_colour:
            chunks.add(name, content)
        if traits.xmp is not None:
            chunks.add_itxt("XML:com.adobe.xmp", traits.xmp.decode("utf-8"))
        options["pnginfo"] = chunks
    elif traits.file_format == "WEBP":
        options |= {"lossless": True, "exact": True, "xmp": traits.xmp or b""}
    elif traits.file_format == "TIFF":
        if traits.exif is None:  # Pillow writes EXIF's own directories to uncompressed files only
            options["compression"] = "tiff_deflate"
        tags = Image.Exif()  # Pillow passes over `exif` where it is given `tiffinfo`
        if traits.exif is not None:
            tags.load(traits.exif)
        if traits.xmp is not None:
            tags[_XMP_TAG] = traits.xmp
        options["exif"] = tags
    buffer = io.BytesIO()
    image.save(buffer, traits.file_format, **options)
    return buffer.getvalue()


def jpeg_bytes(
    picture: Pixels | Image.Image,
    quality: int,
    subsampling: str,
    icc_profile: bytes | None = None,
    traits: Traits | None = None,
) -> bytes:
    """Code uint8 `[H, W, 3]` RGB, or a grey or RGB picture, as JPEG with the metadata of traits."""
    options: dict[str, Any] = {}
    if traits is not None and traits.exif is not None:
        options["exif"] = EXIF_HEADER + traits.exif
    if traits is not None and traits.xmp is not None:
        options["xmp"] = traits.xmp
    image = picture if isinstance(picture, Image.Image) else _image(picture)
    buffer = io.BytesIO()
    image.save(
        buffer,
        "JPEG",
        quality=quality,
        subsampling=subsampling,
        icc_profile=icc_profile,
        **options,
    )
    return buffer.getvalue()


def _image(pixels: Pixels) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 [H, W, 3], not {pixels.dtype} {pixels.shape}")
    return Image.fromarray(np.ascontiguousarray(pixels))
