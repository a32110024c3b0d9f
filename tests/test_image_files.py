from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from utils.image_files import (
    PHOTO_SUFFIXES,
    PhotoError,
    Pixels,
    find_photos,
    jpeg_coded,
    read_photo,
    write_photo,
)

LOSSLESS = [".bmp", ".png", ".tif", ".tiff", ".webp"]


def picture(height: int = 24, width: int = 32) -> Pixels:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth_picture(height: int = 48, width: int = 64) -> Pixels:
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 4, columns * 3, (rows + columns) * 2]
    return np.clip(np.stack(channels, axis=2), 0, 255).astype(np.uint8)


@cache
def srgb_profile() -> bytes:  # it holds the time when it was made
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def refusal(path: Path) -> str:
    with pytest.raises(PhotoError) as caught:
        read_photo(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", LOSSLESS)
def test_lossless_formats_come_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / "folder" / f"a{suffix}"
    write_photo(path, picture())
    photo = read_photo(path)
    assert photo.pixels.dtype == np.uint8
    np.testing.assert_array_equal(photo.pixels, picture())
    assert photo.icc_profile is None


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".jpe", ".jfif"])
def test_jpeg_is_rgb_and_close(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_photo(path, smooth_picture())
    error = read_photo(path).pixels.astype(int) - smooth_picture()
    assert np.abs(error).mean() < 2


def test_jpeg_quality_and_subsampling_are_those_asked_for(tmp_path: Path) -> None:
    sampling = {}
    for name, subsampling in (("fine", "4:4:4"), ("coarse", "4:2:0")):
        path = tmp_path / f"{name}.jpg"
        write_photo(path, picture(), jpeg_quality=80, subsampling=subsampling)
        with Image.open(path) as image:
            sampling[name] = [component[1:3] for component in image.layer]
            coarse_table = image.quantization[0]
    assert sampling == {"fine": [(1, 1)] * 3, "coarse": [(2, 2), (1, 1), (1, 1)]}
    # The JPEG standard's example table begins 16 11 10; quality 80 means 40 % of it.
    assert sorted(coarse_table)[:2] == [4, 4]
    write_photo(tmp_path / "best.jpg", picture(), jpeg_quality=100)
    assert (tmp_path / "best.jpg").stat().st_size > (tmp_path / "fine.jpg").stat().st_size


def test_jpeg_coded_equals_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    write_photo(path, picture(33, 47), jpeg_quality=80, subsampling="4:2:0")
    np.testing.assert_array_equal(jpeg_coded(picture(33, 47), 80), read_photo(path).pixels)
    assert (jpeg_coded(picture(), 80) != jpeg_coded(picture(), 60)).any()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_icc_profile_is_kept_and_other_metadata_is_not(tmp_path: Path, suffix: str) -> None:
    source, copy = tmp_path / f"source{suffix}", tmp_path / f"copy{suffix}"
    exif = Image.Exif()
    exif[0x010F] = "Secret Camera Maker"
    Image.fromarray(picture()).save(source, icc_profile=srgb_profile(), exif=exif)
    assert b"Secret Camera" in source.read_bytes()
    photo = read_photo(source)
    write_photo(copy, photo.pixels, photo.icc_profile)
    assert read_photo(copy).icc_profile == srgb_profile()
    assert b"Secret Camera" not in copy.read_bytes()


UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, k=-1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: lambda pixels: np.rot90(pixels, k=1),
}


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(picture()).save(path, exif=exif, lossless=True)
    photo = read_photo(path)
    np.testing.assert_array_equal(photo.pixels, UPRIGHT[orientation](picture()))
    write_photo(path, photo.pixels)
    np.testing.assert_array_equal(read_photo(path).pixels, photo.pixels)


def test_exif_orientation_of_a_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth_picture()).save(path, exif=exif, quality=100, subsampling=0)
    difference = read_photo(path).pixels.astype(int) - np.rot90(smooth_picture(), k=-1)
    assert np.abs(difference).max() <= 3


@pytest.mark.parametrize("suffix", sorted(PHOTO_SUFFIXES))
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.95])
def test_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    write_photo(path, picture(64, 64))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refusal(path)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("This is not a photo.\n" * 50)
    assert "not a picture" in refusal(path)
    assert "no such file" in refusal(tmp_path / "missing.jpg")
    (tmp_path / "folder.jpg").mkdir()
    refusal(tmp_path / "folder.jpg")


def test_files_appear_complete_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "a.jpg"
    (folder / "inside").mkdir(parents=True)  # cannot be replaced by a file
    with pytest.raises(PhotoError, match="cannot be written"):
        write_photo(folder, picture())
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
    (tmp_path / "file").touch()
    with pytest.raises(PhotoError, match="cannot be written"):
        write_photo(tmp_path / "file" / "a.jpg", picture())
    with pytest.raises(PhotoError, match="use one of"):
        write_photo(tmp_path / "a.gif", picture())


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_photo(path, picture())
    write_photo(path, 255 - picture())
    np.testing.assert_array_equal(read_photo(path).pixels, 255 - picture())
    assert list(tmp_path.iterdir()) == [path]


def test_only_eight_bit_rgb_can_be_written(tmp_path: Path) -> None:
    for wrong in (picture()[:, :, 0], picture().astype(np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            write_photo(tmp_path / "a.png", wrong)  # type: ignore[arg-type]


def test_find_photos(tmp_path: Path) -> None:
    names = "b/2.JPG b/1.jpeg a.png b/c/3.webp film.MP4 b/raw.dng b/phone.heic notes.txt"
    unfinished = "b/.0123456789abcdef0123456789abcdef.tmp"
    for name in [*names.split(), unfinished]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    photos, others = find_photos(tmp_path)
    relative = [path.relative_to(tmp_path).as_posix() for path in photos]
    assert relative == ["a.png", "b/1.jpeg", "b/2.JPG", "b/c/3.webp"]
    skipped = [path.relative_to(tmp_path).as_posix() for path in others]
    assert skipped == ["b/phone.heic", "b/raw.dng", "film.MP4"]


def test_find_photos_names_links_to_folders_and_does_not_follow(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.jpg").touch()
    try:
        (tmp_path / "real" / "loop").symlink_to(tmp_path, target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make symbolic links")
    (tmp_path / "real" / "._a.jpg").touch()  # as macOS writes them to other file systems
    found = [tmp_path / "real" / "a.jpg"]
    assert find_photos(tmp_path) == (
        found,
        [tmp_path / "real" / name for name in ("._a.jpg", "loop")],
    )


def test_find_photos_says_so_where_it_cannot_look(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match="cannot be listed"):
        find_photos(tmp_path / "missing")
