"""Whatever a file holds: a photo comes of it or a PhotoError of one line, and no picture in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import camera_files as camera
from tests import photo_kinds as kinds
from tests.photo_folders import picture
from utils.image_files import Photo, PhotoError, read_photo, write_photo
from utils.metadata import MetadataError, clean_exif, clean_xmp, orientation

SMALL = picture(0, 24, 32)
SEEDS = [
    *(make() for make in camera.CAMERA_FILES.values()),
    *(kinds.coded(name, SMALL) for name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP")),
    kinds.coded("JPEG", SMALL, progressive=True),
    kinds.coded("JPEG", SMALL, mode="CMYK", icc_profile=kinds.cmyk_profile()),
    kinds.coded("PNG", SMALL, mode="P"),
    kinds.coded("PNG", SMALL, mode="LA"),
    kinds.coded("TIFF", SMALL, compression="tiff_lzw"),
    kinds.coded("TIFF", SMALL, compression="tiff_deflate"),
    kinds.coded("WEBP", SMALL, lossless=True),
]
PIECE = 150  # a broken pointer may let through a little of a preview, which shows nothing
FUZZ = settings(
    deadline=None,
    derandomize=True,  # a failure in CI is a failure at home
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A photo with bytes changed, most often in its head, taken out, or put in."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 8))):
        last = min(len(data) - 1, draw(st.sampled_from([64, 1024, len(data) - 1])))
        place = draw(st.integers(0, max(last, 0)))
        kind = draw(st.sampled_from(["set", "set", "set", "cut", "insert", "end"]))
        if kind == "set":
            patches = [b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff\xd8", b"\x01"]
            values = draw(st.sampled_from(patches))
            data[place : place + len(values)] = values
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=32))
        else:
            del data[max(place, 1) :]
    return bytes(data)


@given(data=st.one_of(spoilt(), st.binary(max_size=200)))
@settings(FUZZ, max_examples=2500)
def test_any_file_is_a_photo_or_a_refusal(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    try:
        photo = read_photo(path, max_pixels=50_000, keep_metadata=True)
    except PhotoError as error:
        refusal = str(error)
    else:
        check_photo(photo, tmp_path / "copy.png")
        return
    assert refusal.startswith(f"{path}: ")
    assert refusal.isprintable()


def check_photo(photo: Photo, copy: Path) -> None:
    """Look at what was read, and that it can be written and read again."""
    height, width, channels = photo.pixels.shape
    assert channels == 3
    assert photo.pixels.dtype == np.uint8
    assert 0 < height * width <= 50_000
    write_photo(copy, photo.pixels, photo.icc_profile, traits=photo.traits, opaque=[])
    again = read_photo(copy)
    assert again.pixels.shape == photo.pixels.shape
    assert again.traits.file_format == photo.traits.file_format
    for block in (photo.traits.exif, photo.traits.xmp):
        camera.assert_no_picture_but_the_photo(bytes(1) + (block or b""), PIECE)


@given(noise=st.lists(st.tuples(st.integers(0, 7000), st.binary(max_size=4)), max_size=12))
@settings(FUZZ, max_examples=600)
def test_any_metadata_is_cleaned_or_refused(noise: list[tuple[int, bytes]]) -> None:
    cleaners = ((lambda block: clean_exif(block, 8, 9), camera.exif()), (clean_xmp, camera.xmp()))
    for clean, start in cleaners:
        block = bytearray(start)
        for place, values in noise:
            block[place : place + len(values)] = values
        assert 1 <= orientation(bytes(block)) <= 8
        try:
            cleaned = clean(bytes(block))
        except MetadataError:
            continue
        camera.assert_no_picture_but_the_photo(bytes(1) + cleaned, PIECE)


def test_the_fuzz_begins_with_photos_that_can_be_read(tmp_path: Path) -> None:
    for number, data in enumerate(SEEDS):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        assert read_photo(path).pixels.size
    path.write_bytes(SEEDS[0][:200])
    with pytest.raises(PhotoError):
        read_photo(path)
