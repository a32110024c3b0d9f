"""Photos on disk: find, read, write. Pillow does the work.

An anonymiser must not hand on what it did not look at: a photo that would not survive as 8-bit RGB
without loss, or that is broken anywhere, is refused with a `PhotoError`.
"""

import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Pixels = NDArray[np.uint8]

# Suffix to Pillow's format and its options (JPEG's depend on the caller). WebP is written without
# loss: its lossy mode knows 4:2:0 only, which smears the edge of a box.
_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
_SAVE_OPTIONS: dict[str, dict[str, object]] = {
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_deflate"},
}
PHOTO_SUFFIXES = frozenset(_FORMATS)

# What a person would call a photo or a film but this program cannot read. To be reported, since
# the faces in it stay as they are.
_OTHER_SUFFIXES = (
    ".heic .heif .avif .gif .apng .jxl .jp2 .j2k .jfif .jpe .mpo .psd .tga .ppm "
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .raw "
    ".mp4 .m4v .mov .avi .mkv .webm .wmv .flv .mpg .mpeg .mts .m2ts .3gp .ogv"
)
OTHER_SUFFIXES = frozenset(_OTHER_SUFFIXES.split())

_PLAIN_MODES = frozenset({"1", "L", "P", "RGB"})
_ALPHA_MODES = frozenset({"LA", "PA", "RGBA"})


class PhotoError(Exception):
    """A photo cannot be read or written; the message is one line that names the file."""


@dataclass(frozen=True)
class Photo:
    """pixels: uint8 `[H, W, 3]`, RGB, the EXIF orientation applied. icc_profile: an RGB profile."""

    pixels: Pixels
    icc_profile: bytes | None


def read_photo(path: Path) -> Photo:
    """Read a whole photo as 8-bit RGB, turned as its EXIF orientation says.

    Grey and palette pictures become RGB. Raises PhotoError for a file that is missing, truncated,
    corrupt or no picture, for one above Pillow's limit of 179 million pixels, and for what RGB
    would lose: real transparency, more than 8 bits, CMYK, several frames.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns at half its limit and at odd metadata; neither concerns the pixels.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=sorted(set(_FORMATS.values()))) as image:
                return _decoded(path, image)
    except PhotoError:
        raise
    except FileNotFoundError:
        raise PhotoError(f"{path}: no such file") from None
    except Image.UnidentifiedImageError:
        raise PhotoError(f"{path}: not a picture of a known format, or broken") from None
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{path}: too many pixels ({_one_line(error)})") from None
    except Exception as error:  # Pillow's decoders raise almost any type on a broken file
        raise PhotoError(f"{path}: cannot be read ({_one_line(error)})") from None


def _decoded(path: Path, image: Image.Image) -> Photo:
    """Check an opened picture, decode it all, and turn it upright."""
    # A phone's JPEG may carry a second picture (MPO), a depth map or a preview: only the first,
    # the photo, is read, and nothing else is written.
    if getattr(image, "n_frames", 1) != 1 and image.format != "MPO":
        raise PhotoError(f"{path}: holds several frames; save the one wanted as its own file")
    if _has_deep_samples(image):
        raise PhotoError(f"{path}: has more than 8 bits a channel; convert it to 8 bits first")
    if image.mode not in _PLAIN_MODES | _ALPHA_MODES:
        raise PhotoError(f"{path}: colour mode {image.mode} is not RGB or grey; convert it first")
    icc_profile = image.info.get("icc_profile")
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    upright = image
    if upright.mode in _ALPHA_MODES or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        if upright.getchannel("A").getextrema() != (255, 255):
            raise PhotoError(f"{path}: has transparent pixels; flatten it first")
    if upright.mode != "RGB":  # Pillow would copy it all the same
        upright = upright.convert("RGB")
    pixels = np.array(upright, dtype=np.uint8)
    return Photo(pixels, icc_profile if _is_rgb_profile(icc_profile) else None)


def _has_deep_samples(image: Image.Image) -> bool:
    """Tell whether Pillow would cut 16-bit samples to 8 (it does so for RGB, without a word)."""
    if image.format == "TIFF":
        bits = getattr(image, "tag_v2", {}).get(258, (1,))  # BitsPerSample
        return bool(max(bits if isinstance(bits, tuple) else (bits,)) > 8)
    if image.format == "PNG":
        return image.mode.startswith("I") or any(
            ";16" in str(tile[3]) for tile in getattr(image, "tile", [])
        )
    return False


def _is_rgb_profile(icc_profile: bytes | None) -> bool:
    """A grey profile would be wrong on the RGB file that is written later."""
    return icc_profile is not None and icc_profile[16:20] == b"RGB "


def write_photo(
    path: Path,
    pixels: Pixels,
    icc_profile: bytes | None = None,
    jpeg_quality: int = 95,
    subsampling: str = "4:4:4",
) -> None:
    """Write uint8 `[H, W, 3]` RGB to `path`, in the format of its suffix, making its folders.

    No metadata but the ICC profile (BMP has no place for one). `jpeg_quality` and `subsampling`
    concern JPEG only. The file appears under its name complete or not at all. Raises PhotoError.
    """
    try:
        data = _encoded(path, pixels, icc_profile, jpeg_quality, subsampling)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Short, so that it fits where the name itself fits; ends in what find_photos ignores.
        # The same for every try: what a killed run leaves is written over by the next.
        digest = hashlib.sha256(path.name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
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
        raise PhotoError(f"{path}: cannot be written ({_one_line(error)})") from None


def _encoded(
    path: Path, pixels: Pixels, icc_profile: bytes | None, jpeg_quality: int, subsampling: str
) -> bytes:
    format_name = _FORMATS.get(path.suffix.lower())
    if format_name is None:
        known = " ".join(sorted(PHOTO_SUFFIXES))
        raise PhotoError(f"{path}: cannot write this type of file; use one of {known}")
    if format_name == "JPEG":
        return _jpeg_bytes(pixels, jpeg_quality, subsampling, icc_profile)
    options = dict(_SAVE_OPTIONS.get(format_name, {}))
    if icc_profile is not None and format_name != "BMP":
        options["icc_profile"] = icc_profile
    buffer = io.BytesIO()
    _image(pixels).save(buffer, format_name, **options)
    return buffer.getvalue()


def _jpeg_bytes(
    pixels: Pixels, quality: int, subsampling: str, icc_profile: bytes | None = None
) -> bytes:
    buffer = io.BytesIO()
    _image(pixels).save(
        buffer, "JPEG", quality=quality, subsampling=subsampling, icc_profile=icc_profile
    )
    return buffer.getvalue()


def _image(pixels: Pixels) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels must be uint8 [H, W, 3], not {pixels.dtype} {pixels.shape}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def jpeg_coded(pixels: Pixels, quality: int) -> Pixels:
    """Return what is read back from `pixels`, uint8 `[H, W, 3]` RGB, as JPEG 4:2:0 of `quality`."""
    data = _jpeg_bytes(pixels, quality, "4:2:0")
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        return np.array(image, dtype=np.uint8)


def find_photos(root: Path) -> tuple[list[Path], list[Path]]:
    """Search `root` and its subfolders; links to folders are not followed.

    Returns, both sorted, the photos (by suffix) and the pictures and films of other types, which
    a caller should report as left alone. Raises PhotoError where a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise PhotoError(f"{error.filename}: cannot be listed ({_one_line(error)})") from None

    photos, others = [], []
    for folder, _, names in os.walk(root, onerror=refuse, followlinks=False):
        for name in names:
            path = Path(folder, name)
            if path.suffix.lower() in PHOTO_SUFFIXES:
                photos.append(path)
            elif path.suffix.lower() in OTHER_SUFFIXES:
                others.append(path)
    return sorted(photos), sorted(others)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
