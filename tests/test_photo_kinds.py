"""Every kind of photo, through `python dartblur.py`: what becomes of it, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from tests import photo_kinds as kinds
from tests.photo_folders import files_below, label_file, manifest, picture, run
from tests.test_image_files import UPRIGHT
from utils.image_files import PhotoError, read_photo, write_photo

BOX = (10, 20, 30, 40)  # x y w h, of photos of 120 x 100
INSIDE = np.s_[20:60, 10:40]
COLOUR = picture(0)
GREY = COLOUR[:, :, 0]
ALPHA = np.full((100, 120), 255, dtype=np.uint8)
ALPHA[10:90, 15:110] = 0  # most of the face is not to be seen
ALPHA[30:35] = 128
DEEP = COLOUR.astype(np.uint16) * 256 + picture(1)

KINDS: dict[str, kinds.Maker] = {
    "grey.png": kinds.pillow(GREY),
    "grey.jpg": kinds.pillow(GREY, icc_profile=kinds.grey_profile()),
    "grey with a colour profile.jpg": kinds.pillow(GREY, icc_profile=kinds.srgb_profile()),
    "colour with a grey profile.jpg": kinds.pillow(COLOUR, icc_profile=kinds.grey_profile()),
    "bits.png": kinds.pillow(GREY > 127),
    "palette.png": lambda path: Image.fromarray(COLOUR).quantize(16).save(path),
    "alpha.png": kinds.pillow(kinds.with_alpha(COLOUR, ALPHA)),
    "alpha.webp": kinds.pillow(kinds.with_alpha(COLOUR, ALPHA), lossless=True, exact=True),
    "alpha.tif": kinds.pillow(kinds.with_alpha(COLOUR, ALPHA)),
    "opaque.png": kinds.pillow(kinds.with_alpha(COLOUR, np.full_like(ALPHA, 255))),
    "grey and alpha.png": kinds.pillow(np.dstack([GREY, ALPHA])),
    "clear colour.png": kinds.pillow(COLOUR, transparency=tuple(map(int, COLOUR[0, 0]))),
    "deep.png": kinds.opencv(DEEP[:, :, ::-1]),
    "deep.tif": kinds.opencv(DEEP[:, :, ::-1]),
    "deep grey.png": kinds.opencv(DEEP[:, :, 0]),
    "deep grey.tif": kinds.opencv(DEEP[:, :, 0]),
    "cmyk.jpg": kinds.pillow(COLOUR, "CMYK"),
    "cmyk.tif": kinds.pillow(COLOUR, "CMYK"),
    "cmyk with profile.jpg": kinds.pillow(COLOUR, "CMYK", icc_profile=kinds.cmyk_profile()),
    "png named.jpg": kinds.pillow(COLOUR, format="PNG"),
    "jpeg named.png": kinds.pillow(COLOUR, format="JPEG", quality=95),
    "progressive.jpg": kinds.pillow(COLOUR, progressive=True),
    "ycbcr.tif": kinds.pillow(COLOUR, "YCbCr"),
    "interlaced.bmp": kinds.pillow(COLOUR),
    "with previews.tif": kinds.pages(COLOUR, COLOUR[::2, ::2], COLOUR[::4, ::4], preview=True),
    "p3.jpg": kinds.pillow(COLOUR, icc_profile=kinds.p3_profile()),
    "p3.png": kinds.pillow(COLOUR, icc_profile=kinds.p3_profile()),
    "p3.webp": kinds.pillow(COLOUR, icc_profile=kinds.p3_profile(), lossless=True),
    "p3.tif": kinds.pillow(COLOUR, icc_profile=kinds.p3_profile()),
    "p3 by cicp.png": kinds.content(
        kinds.png_with(
            kinds.coded("PNG"),
            kinds.png_chunk(b"cICP", bytes([12, 13, 0, 1])),
            kinds.png_chunk(b"gAMA", (45455).to_bytes(4, "big")),
            kinds.png_chunk(b"tEXt", b"Comment\0secret"),
        )
    ),
    **{f"turn {n}.png": kinds.pillow(COLOUR, exif=kinds.exif_turn(n)) for n in UPRIGHT},
    "turned by xmp alone.png": kinds.content(
        kinds.png_with(
            kinds.coded("PNG"),
            kinds.png_chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        )
    ),
}
SIZES = {
    "one pixel.png": (1, 1),
    "one pixel.jpg": (1, 1),
    "column.jpg": (10_000, 1),
    "row.webp": (1, 10_000),
    "row.tif": (1, 10_000),
}


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kinds, gone through one run; the originals are in `in` beside it."""
    folder = tmp_path_factory.mktemp("kinds") / "in"
    folder.mkdir()
    labels = {}
    for name, make in KINDS.items():
        make(folder / name)
        labels[name] = [" ".join(map(str, BOX))]
    for name, (height, width) in SIZES.items():
        kinds.pillow(picture(2, height, width))(folder / name)
        labels[name] = [f"0 0 {min(width, 20)} {min(height, 20)}"]
    file = label_file(folder.with_name("label.txt"), labels)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(folder, "--labels", file, "--method", "black") == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    output = folder.with_name("in_black")
    assert files_below(output) == {*KINDS, *SIZES, "manifest.jsonl"}
    return output


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def flags(copies: Path, name: str) -> list[str]:
    entry = manifest(copies)[name]
    assert (entry["status"], entry["faces"]) == ("done", 1)
    return list(entry["flags"])


def assert_hidden(found: NDArray[Any], original: NDArray[Any]) -> None:
    """Black inside the box, untouched outside."""
    assert not found[INSIDE].any()
    outside = np.ones(found.shape[:2], dtype=bool)
    outside[INSIDE] = False
    np.testing.assert_array_equal(found[outside], original[outside])


def test_grey_stays_grey(copies: Path) -> None:
    assert opened(copies / "grey.png").mode == "L"
    assert_hidden(np.asarray(opened(copies / "grey.png")), GREY)
    assert opened(copies / "grey.jpg").mode == "L"
    assert opened(copies / "bits.png").mode == "L"
    assert_hidden(np.asarray(opened(copies / "bits.png")), np.where(GREY > 127, 255, 0))
    assert flags(copies, "grey.png") == flags(copies, "bits.png") == []


def test_a_profile_goes_with_its_channels_only(copies: Path) -> None:
    assert opened(copies / "grey.jpg").info["icc_profile"] == kinds.grey_profile()
    for name in ("grey with a colour profile.jpg", "colour with a grey profile.jpg"):
        assert "icc_profile" not in opened(copies / name).info


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_display_p3_photo_keeps_its_colours(copies: Path, suffix: str) -> None:
    images = [opened(folder / f"p3.{suffix}") for folder in (copies, copies.with_name("in"))]
    copy, original = (
        np.asarray(
            ImageCms.profileToProfile(
                image, io.BytesIO(image.info["icc_profile"]), ImageCms.createProfile("sRGB")
            ),
            dtype=np.int64,
        )
        for image in images
    )
    assert images[0].info["icc_profile"] == kinds.p3_profile()
    assert (original != np.asarray(images[1])).mean() > 0.5  # the profile does something
    change = np.abs(copy - original)[70:]
    assert change.mean() < (3 if suffix == "jpg" else 1e-9)


def test_a_pngs_other_colour_chunks_are_kept(copies: Path) -> None:
    data = (copies / "p3 by cicp.png").read_bytes()
    assert b"cICP" + bytes([12, 13, 0, 1]) in data[: data.index(b"IDAT")]
    assert b"gAMA" + (45455).to_bytes(4, "big") in data
    assert b"secret" not in data


def test_a_palette_becomes_colours(copies: Path) -> None:
    assert opened(copies / "palette.png").mode == "RGB"
    original = opened(copies.with_name("in") / "palette.png").convert("RGB")
    assert_hidden(np.asarray(opened(copies / "palette.png")), np.asarray(original))


@pytest.mark.parametrize("name", ["alpha.png", "alpha.webp", "alpha.tif", "grey and alpha.png"])
def test_alpha_is_kept_but_over_faces(copies: Path, name: str) -> None:
    image = opened(copies / name)
    assert image.mode == ("LA" if "grey" in name else "RGBA")
    layers = np.asarray(image)
    colours, alpha = layers[:, :, :-1], layers[:, :, -1]
    assert (alpha[INSIDE] == 255).all()  # its outline would show the face's
    assert not colours[INSIDE].any()
    outside = np.ones(alpha.shape, dtype=bool)
    outside[INSIDE] = False
    np.testing.assert_array_equal(alpha[outside], ALPHA[outside])
    original = GREY[:, :, None] if "grey" in name else COLOUR
    seen = outside & (ALPHA > 0)
    np.testing.assert_array_equal(colours[seen], original[seen])
    hidden = colours[outside & (ALPHA == 0)]  # what nobody sees, nobody checked
    assert (hidden == hidden[0]).all()


def test_a_clear_colour_becomes_alpha_and_no_alpha_is_none(copies: Path) -> None:
    alpha = np.asarray(opened(copies / "clear colour.png"))[:, :, 3]
    is_clear = np.all(COLOUR[:1, :1] == COLOUR, axis=2) & (alpha < 255)
    assert alpha[0, 0] == 0
    assert (alpha == 255).sum() == alpha.size - is_clear.sum()
    assert opened(copies / "opaque.png").mode == "RGB"


def test_a_drawing_in_alpha_is_seen_and_hidden(tmp_path: Path) -> None:
    """Black ink on nothing: the colours alone are all black, and no detector would see a thing."""
    ink = np.where(GREY > 127, 255, 0).astype(np.uint8)
    kinds.pillow(kinds.with_alpha(np.zeros_like(COLOUR), ink))(tmp_path / "ink.png")
    photo = read_photo(tmp_path / "ink.png")
    np.testing.assert_array_equal(photo.pixels[:, :, 1], 255 - ink)
    with pytest.raises(ValueError, match="with its boxes"):
        write_photo(tmp_path / "copy.png", photo.pixels, traits=photo.traits)
    assert not (tmp_path / "copy.png").exists()


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "deep grey.png", "deep grey.tif"])
def test_sixteen_bits_become_eight_with_a_flag(copies: Path, name: str) -> None:
    assert flags(copies, name) == ["reduced_to_8_bits"]
    assert_hidden(np.asarray(opened(copies / name)), GREY if "grey" in name else COLOUR)


def test_cmyk_becomes_srgb_with_a_flag(copies: Path) -> None:
    for name in ("cmyk.jpg", "cmyk.tif", "cmyk with profile.jpg"):
        assert flags(copies, name) == ["converted_from_cmyk"]
        assert opened(copies / name).mode == "RGB"
        assert "icc_profile" not in opened(copies / name).info
    naive = np.asarray(Image.fromarray(COLOUR).convert("CMYK").convert("RGB"))
    assert_hidden(np.asarray(opened(copies / "cmyk.tif")), naive)
    # The profile that was made for this test takes all inks for grey.
    through_profile = np.asarray(opened(copies / "cmyk with profile.jpg")).astype(int)
    assert np.ptp(through_profile, axis=2).max() < 12
    assert np.ptp(through_profile[70:]) > 60
    assert np.ptp(np.asarray(opened(copies / "cmyk.jpg")).astype(int), axis=2).max() > 60


def test_the_content_decides_on_the_format_not_the_name(copies: Path) -> None:
    for name, file_format in {"png named.jpg": "PNG", "jpeg named.png": "JPEG"}.items():
        assert opened(copies / name).format == file_format
        assert flags(copies, name) == ["wrong_suffix"]
    assert_hidden(np.asarray(opened(copies / "png named.jpg")), COLOUR)


def test_of_a_tiff_with_previews_the_photo_is_left(copies: Path) -> None:
    image = opened(copies / "with previews.tif")
    assert (image.n_frames, image.size) == (1, (120, 100))  # type: ignore[attr-defined]
    assert_hidden(np.asarray(image), COLOUR)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_each_orientation_comes_out_upright(copies: Path, orientation: int) -> None:
    """Its box is that of the upright photo."""
    image = opened(copies / f"turn {orientation}.png")
    assert not image.getexif()
    assert_hidden(np.asarray(image), UPRIGHT[orientation](COLOUR))


def test_xmp_turns_nothing(copies: Path) -> None:
    """As in browsers and OpenCV, and so in the programs that labels are made with."""
    assert_hidden(np.asarray(opened(copies / "turned by xmp alone.png")), COLOUR)


@pytest.mark.parametrize("name", SIZES)
def test_extreme_sizes(copies: Path, name: str) -> None:
    """A face one pixel wide is filled with its mean, before it would be blurred."""
    height, width = SIZES[name]
    image = opened(copies / name)
    assert image.size == (width, height)
    assert "tiny_box" in flags(copies, name)
    inside = np.asarray(image)[:20, :20].astype(int)
    assert np.ptp(inside.reshape(-1, 3)[:16], axis=0).max() <= (8 if name.endswith("jpg") else 0)


SOFT = np.tile(np.linspace(1, 254, 120).astype(np.uint8), (100, 1))
WHOLE = {name: kinds.coded(name) for name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP")}
REFUSED: dict[str, tuple[kinds.Maker, str]] = {
    "empty.jpg": (kinds.content(b""), "empty file, 0 bytes"),
    "text.jpg": (kinds.content(b"This is not a photo.\n" * 50), "not a picture of a known format"),
    "cut.jpg": (kinds.content(WHOLE["JPEG"][:-900]), "damaged (Premature end of JPEG file)"),
    "cut.png": (kinds.content(WHOLE["PNG"][:-900]), "cut.png: "),
    "cut.webp": (kinds.content(WHOLE["WEBP"][:-900]), "cut.webp: "),
    "cut.tif": (kinds.content(WHOLE["TIFF"][:-900]), "cut.tif: "),
    "cut.bmp": (kinds.content(WHOLE["BMP"][:-900]), "cut.bmp: "),
    "damaged.jpg": (kinds.content(kinds.damaged(WHOLE["JPEG"])), "damaged (Corrupt JPEG data"),
    "damaged grey.jpg": (
        kinds.content(kinds.damaged(kinds.coded("JPEG", GREY))),
        "damaged (Corrupt JPEG data",
    ),
    "damaged cmyk.jpg": (
        kinds.content(kinds.damaged(kinds.coded("JPEG", mode="CMYK"))),
        "damaged (Corrupt JPEG data",
    ),
    "damaged.png": (kinds.content(kinds.damaged(WHOLE["PNG"], 1)), "damaged.png: cannot be read"),
    "damaged.tif": (
        kinds.content(kinds.damaged(kinds.coded("TIFF", compression="tiff_deflate"), 1)),
        "damaged.tif: cannot be read",
    ),
    "scans.jpg": (kinds.content(kinds.many_scans(200)), "more than 100 scans"),
    "a gif.png": (kinds.frames("GIF"), "not a picture of a known format"),
    "animated.png": (kinds.frames("PNG"), "holds 3 frames or pages"),
    "animated.webp": (kinds.frames("WEBP"), "holds 3 frames or pages"),
    "pages.tif": (kinds.frames("TIFF"), "holds 3 frames or pages"),
    "a preview.tif": (kinds.pages(COLOUR, first=True), "its first page is a preview"),
    "real.tif": (kinds.opencv(GREY.astype(np.float32)), "convert it"),
    "dark.png": (kinds.opencv(GREY.astype(np.uint16)), "small part of its 16 bits"),
    "alpha.bmp": (
        lambda path: path.write_bytes(
            kinds.bmp_with_alpha(kinds.with_alpha(COLOUR, np.minimum(ALPHA, 254)))
        ),
        "a BMP with transparent pixels",
    ),
    "shades.png": (kinds.pillow(kinds.with_alpha(COLOUR, SOFT)), "transparency holds shades"),
    "vast.png": (
        kinds.content(kinds.plain_png(20_000, 20_000)),
        "too many pixels, above the limit of 128 megapixels (input.max_megapixels)",
    ),
    "large.png": (
        kinds.content(kinds.plain_png(12_801, 10_000)),
        "too many pixels, 12801 x 10000, above the limit of 128 megapixels (input.max_megapixels)",
    ),
    "a lie.png": (kinds.content(kinds.plain_png(60_000, 60_000, rows=9)), "too many pixels"),
    "tile.tif": (kinds.content(kinds.tiff_with_tile(1 << 15)), "too many pixels, 32768 x 32768"),
}


def test_what_is_no_whole_single_photo_gets_no_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "in", tmp_path / "in_black"
    folder.mkdir()
    for name, (make, _) in REFUSED.items():
        make(folder / name)
    kinds.pillow(COLOUR)(folder / "good.png")
    names = [*REFUSED, "good.png"]
    labels = label_file(tmp_path / "label.txt", {name: ["1 1 20 20"] for name in names})
    assert run(folder, "--labels", labels, "--method", "black") == 1
    assert files_below(output) == {"good.png", "manifest.jsonl"}
    captured = capsys.readouterr()
    assert f"1 photos written, 1 faces hidden, {len(REFUSED)} failures" in captured.out
    lines = [line for line in captured.err.splitlines() if line.startswith("failed, no output: ")]
    assert len(lines) == len(REFUSED)
    for name, (_, words) in REFUSED.items():
        (line,) = [line for line in lines if f"{folder / name}: " in line]
        assert words in line
        assert manifest(output)[name]["status"] == "failed"


def test_the_limit_of_pixels_can_be_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    kinds.pillow(COLOUR)(tmp_path / "in" / "a.png")
    labels = label_file(tmp_path / "label.txt", {"a.png": ["1 1 20 20"]})
    options = (tmp_path / "in", "--labels", labels, "--method", "black")
    assert run(*options, "--set", "input.max_megapixels=0.0119") == 1
    assert "a.png: too many pixels, 120 x 100, above the limit of 0.0119" in capsys.readouterr().err
    assert run(*options, "--set", "input.max_megapixels=0.012") == 0
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow has a limit of its own
    assert run(*options) == 0


def test_a_file_too_large_for_any_photo_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(
        PhotoError, match=r"too large, 1048576 MiB, for a photo of at most 128 mega"
    ):
        read_photo(path)


def test_subsampling_and_quality_can_be_set(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    kinds.pillow(COLOUR)(tmp_path / "in" / "a.jpg")
    labels = label_file(tmp_path / "label.txt", {"a.jpg": []})
    options = (tmp_path / "in", "--labels", labels, "--method", "black")
    for subsampling, first in {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}.items():
        assert run(*options, "--set", f"output.jpeg_subsampling={subsampling}") == 0
        image: Any = opened(tmp_path / "in_black" / "a.jpg")
        assert [layer[1:3] for layer in image.layer] == [first, (1, 1), (1, 1)]
    assert run(*options, "--jpeg-quality", "50") == 0
    # The JPEG standard's example table begins 16 11 10, and quality 50 stands for it.
    coarse: Any = opened(tmp_path / "in_black" / "a.jpg")
    assert sorted(coarse.quantization[0])[:2] == [10, 11]
