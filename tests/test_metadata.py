"""What copies keep beside the pixels, through `python dartblur.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import camera_files as camera
from tests import photo_kinds as kinds
from tests.camera_files import CAMERA_FILES, MAKER, OWNER
from tests.photo_folders import label_file, manifest, picture, run
from utils.image_files import Traits, read_photo, write_photo
from utils.metadata import MetadataError, clean_exif, clean_xmp, orientation, usable_profile

LABELS = {name: ["5 105 40 14"] for name in CAMERA_FILES}  # of the upright photo, 100 x 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("camera") / "in"
    folder.mkdir()
    for name, make in CAMERA_FILES.items():
        (folder / name).write_bytes(make())
    label_file(folder.with_name("label.txt"), LABELS)
    return folder


def copies_of(folder: Path, *options: object) -> Path:
    output = folder.with_name("kept" if options else "bare")
    labels = folder.with_name("label.txt")
    target = ("--output", output, "--labels", labels, "--method", "black")
    assert run(folder, *target, *options) == 0
    return output


@pytest.fixture(scope="module")
def bare(folder: Path) -> Path:
    return copies_of(folder)


@pytest.fixture(scope="module")
def kept(folder: Path) -> Path:
    return copies_of(folder, "--keep-metadata")


@pytest.mark.parametrize("name", CAMERA_FILES)
def test_the_check_finds_thumbnails_where_they_are(folder: Path, name: str) -> None:
    with pytest.raises(AssertionError):
        camera.assert_no_picture_but_the_photo((folder / name).read_bytes())
    assert MAKER.encode() in (folder / name).read_bytes()


@pytest.mark.parametrize("name", CAMERA_FILES)
def test_no_thumbnail_or_preview_survives(bare: Path, kept: Path, name: str) -> None:
    for output in (bare, kept):
        data = (output / name).read_bytes()
        camera.assert_no_picture_but_the_photo(camera.unpacked(data))
        with Image.open(output / name) as image:
            assert getattr(image, "n_frames", 1) == 1
            assert image.size == (100, 120)


@pytest.mark.parametrize("name", CAMERA_FILES)
def test_by_default_the_profile_is_all(bare: Path, name: str) -> None:
    data = camera.unpacked((bare / name).read_bytes())
    for words in (MAKER, OWNER, "2024", "Exif", "eXIf", "adobe:ns:meta", "8BIM", "Raw profile"):
        assert words.encode() not in data
    with Image.open(bare / name) as image:
        assert not image.getexif().get_ifd(0x8769)
        profile = None if name == "phone.jpg" else kinds.p3_profile()
        assert image.info.get("icc_profile") == profile
    assert manifest(bare)[name]["flags"] == []


@pytest.mark.parametrize("name", CAMERA_FILES)
def test_exif_is_kept_where_asked_for(kept: Path, name: str) -> None:
    with Image.open(kept / name) as image:
        exif = image.getexif()
        details = exif.get_ifd(0x8769)
        places = exif.get_ifd(0x8825)
        assert exif[0x010F] == MAKER
        assert exif[0x013B] == OWNER
        assert exif.get(0x0112, 1) == 1
        assert details[0x829A] == pytest.approx(1 / 250)
        assert details[0x9003] == "2024:05:06 07:08:09"
        assert (details[0xA002], details[0xA003]) == image.size == (100, 120)
        assert [float(number) for number in places[2]] == [52, 31, 12]
        assert not {0x010E, 0x8649, 0xC4A5} & set(exif)
        assert not {0x927C, 0x9286, 0xA40B, 0xFDE8} & set(details)
        assert not exif.get_ifd(1)
    np.testing.assert_array_equal(read_photo(kept / name).pixels.shape, (120, 100, 3))
    assert manifest(kept)[name]["flags"] == []


@pytest.mark.parametrize("name", sorted(CAMERA_FILES.keys() - {"phone.jpg"}))
def test_xmp_is_kept_where_asked_for(kept: Path, name: str) -> None:
    with Image.open(kept / name) as image:
        xmp = image.info["xmp"]
        profile = image.info["icc_profile"]
    text = xmp if isinstance(xmp, str) else xmp.decode()
    assert OWNER in text
    assert "A portrait, taken by the sea." in text
    assert 'xmp:Rating="4"' in text
    assert 'tiff:Orientation="1"' in text
    for words in ("Thumbnails", "<xmpGImg", "GImage:Data", "Preview", "HasExtended", "ImageWidth"):
        assert words not in text
    assert profile == kinds.p3_profile()


def test_broken_metadata_costs_itself_only(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, options in {
        "exif.jpg": {"exif": b"Exif\0\0II*\0\xff\xff\xff\xff"},
        "xmp.jpg": {"xmp": b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>'},
        "half.jpg": {"xmp": camera.xmp()[:900]},
    }.items():
        (tmp_path / "in" / name).write_bytes(kinds.coded("JPEG", None, None, **options))
    output = copies_of_all(tmp_path, "--keep-metadata")
    for name, entry in manifest(output).items():
        assert entry["flags"] == ["metadata_unreadable"]
        assert b"http://ns.adobe" not in (output / name).read_bytes()


def copies_of_all(folder: Path, *options: object) -> Path:
    names = [path.name for path in (folder / "in").iterdir()]
    labels = label_file(folder / "label.txt", {name: [] for name in names})
    assert run(folder / "in", "--labels", labels, "--method", "black", *options) == 0
    return folder / "in_black"


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_values_come_through_as_they_were(order: str) -> None:
    """Their types and both byte orders included; a second pass changes nothing more."""
    block = clean_exif(b"Exif\0\0" + camera.exif(order), 100, 120)
    assert orientation(camera.exif(order)) == 6
    assert orientation(block) == 1
    assert clean_exif(block, 100, 120) == block
    tags = Image.Exif()
    tags.load(block)
    assert tags.get_ifd(0x8769)[0x829A] == pytest.approx(1 / 250)
    assert tags.get_ifd(0xA005)[1] == "R98"


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_out_of_range_is_none(value: int) -> None:
    assert orientation(camera.exif("<", value)) == 1


def test_xmp_that_cannot_be_trusted_is_refused() -> None:
    split = camera.small_thumbnail().hex()
    for xmp, words in {
        b"\xff\xfe<": "not UTF-8",
        b"<x>" + b" " * 70_000 + b"</x>": "too large",
        b"<x><y></x>": "cannot be read",
        b"<x>" * 5000 + b"</x>" * 5000: "cannot be read",
        f"<a>{split[:100]}<b/>{split[100:180]}</a>".encode(): None,
    }.items():
        if words is None:
            assert b"ffd8ff" not in clean_xmp(xmp)
        else:
            with pytest.raises(MetadataError, match=words):
                clean_xmp(xmp)


def test_what_follows_a_profile_is_cut_off() -> None:
    profile = kinds.p3_profile()
    assert usable_profile(profile + camera.thumbnail(), "RGB") == profile
    assert usable_profile(profile[:-1], "RGB") is None
    assert usable_profile(profile, "GRAY") is None
    assert usable_profile(kinds.grey_profile(), "GRAY") == kinds.grey_profile()
    assert usable_profile(b"", "RGB") is usable_profile(None, "RGB") is None


def test_a_bmp_has_no_place_for_metadata(tmp_path: Path) -> None:
    exif = clean_exif(camera.exif(), 120, 100)
    traits = Traits("BMP", exif=exif, xmp=camera.xmp())
    write_photo(tmp_path / "a.bmp", picture(0), kinds.p3_profile(), traits=traits)
    assert (tmp_path / "a.bmp").stat().st_size == 54 + picture(0).size
