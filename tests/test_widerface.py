from pathlib import Path

import numpy as np
import pytest

from utils.widerface import LabelError, find_labels, photo_path, read_labels

ABSENT = " ".join(["-1.0"] * 15)
OFFICIAL = """\
0--Parade/a.jpg
2
10 20 30 40 0 0 0 0 0 0
1 2 3 4 2 1 1 1 2 1
0--Parade/empty.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Other/b.jpg
1
5 6 0 8 0 0 0 0 0 0
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_official_format(tmp_path: Path) -> None:
    first, empty, last = read_labels(write(tmp_path, OFFICIAL))
    assert first.path == "0--Parade/a.jpg"
    assert first.boxes.dtype == np.float64
    assert first.boxes.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6]]
    assert first.invalid.tolist() == [False, True]
    assert first.landmarks.shape == (2, 5, 2)
    assert np.isnan(first.landmarks).all()
    assert empty.path == "0--Parade/empty.jpg"
    assert empty.boxes.shape == (0, 4)
    assert empty.landmarks.shape == (0, 5, 2)
    assert empty.invalid.shape == (0,)
    # A face without width occurs in WIDER FACE; it is read, callers drop it by `usable`.
    assert last.boxes.tolist() == [[5, 6, 5, 14]]


def test_official_count_of_zero_without_its_row_of_zeros(tmp_path: Path) -> None:
    photos = read_labels(write(tmp_path, "a.jpg\n0\nb.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n"))
    assert [len(photo.boxes) for photo in photos] == [0, 1]


def test_retinaface_format(tmp_path: Path) -> None:
    points = "11 12 0.0 21 22 0.0 -1 17 1.0 -1.0 -1.0 -1.0 19.5 30 0.0"
    text = (
        f"# e/a.jpg\n10 20 30 40 {points} 0.82\n1 2 3 4 {ABSENT} 2\n# e/none.jpg\n"
        "# e/with space.jpg\n1.5 2 3 4\n"
    )
    first, none, last = read_labels(write(tmp_path, text))
    assert first.boxes.tolist() == [[10, 20, 40, 60], [1, 2, 4, 6]]
    nan = float("nan")
    # A landmark is absent where both its coordinates are -1; one of them alone is a place.
    expected = [[11, 12], [21, 22], [-1, 17], [nan, nan], [19.5, 30]]
    np.testing.assert_array_equal(first.landmarks[0], expected)
    assert np.isnan(first.landmarks[1]).all()
    assert not first.invalid.any()
    assert (none.path, none.boxes.shape) == ("e/none.jpg", (0, 4))
    assert (last.path, last.boxes.tolist()) == ("e/with space.jpg", [[1.5, 2, 4.5, 6]])
    assert np.isnan(last.landmarks).all()


@pytest.mark.parametrize("text", ["# e/ä.jpg\n1 2 3 4\n", "e/ä.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n"])
def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path: Path, text: str) -> None:
    data = b"\xef\xbb\xbf\r\n" + text.replace("\n", " \r\n\r\n").encode()
    (photo,) = read_labels(write(tmp_path, data))
    assert photo.path == "e/ä.jpg"
    assert photo.boxes.tolist() == [[1, 2, 4, 6]]


MALFORMED = {
    "empty file": ("\n \n", 1, "empty"),
    "three columns": ("# a.jpg\n1 2 3\n", 2, "4 or 20 numbers"),
    "official row in the other format": ("# a.jpg\n1 2 3 4 0 0 0 0 0 0\n", 2, "got 10 fields"),
    "word": ("# a.jpg\n1 2 3 4\n1 2 three 4\n", 3, "three"),
    "nan": ("# a.jpg\n1 2 nan 4\n", 2, "finite"),
    "infinity": ("# a.jpg\n1 2 3 inf\n", 2, "finite"),
    "overflow": ("# a.jpg\n1e308 2 1e308 4\n", 2, "finite"),
    "negative width": ("# a.jpg\n1 2 -3 4\n", 2, "0 or more, got '1 2 -3 4'"),
    "negative height": ("a.jpg\n1\n1 2 3 -4 0 0 0 0 0 0\n", 3, "0 or more"),
    "header without a path": ("# a.jpg\n1 2 3 4\n#\n", 3, "empty"),
    "duplicate": ("# a.jpg\n# b.jpg\n\n# a.jpg\n", 4, "first in line 1"),
    "duplicate in other words": ("# e/a.jpg\n# e//./a.jpg\n", 2, "first in line 1"),
    "official duplicate": ("a.jpg\n0\na.jpg\n0\n", 3, "first in line 1"),
    "count missing": ("a.jpg\n1 2 3 4 0 0 0 0 0 0\n", 2, "number of faces of 'a.jpg'"),
    "count missing at the end": ("a.jpg\n0\nb.jpg\n", 3, "number of faces of 'b.jpg'"),
    "negative count": ("a.jpg\n-1\n", 2, "number of faces"),
    "count of other digits": ("a.jpg\n²\n", 2, "number of faces"),
    "huge count": ("a.jpg\n" + "9" * 5000 + "\n", 2, "number of faces"),
    "file ends early": ("a.jpg\n3\n1 2 3 4 0 0 0 0 0 0\n", 3, "1 of the 3"),
    "too few rows": ("a.jpg\n2\n1 2 3 4 0 0 0 0 0 0\nb.jpg\n0\n", 4, "10 numbers"),
    "too many rows": ("a.jpg\n1\n" + "1 2 3 4 0 0 0 0 0 0\n" * 2 + "b.jpg\n0\n", 4, "count"),
    "rows of a photo said to be empty": ("a.jpg\n0\n1 2 3 4 0 0 0 0 0 0\n", 3, "count"),
    "nine columns": ("a.jpg\n1\n1 2 3 4 0 0 0 0 0\n", 3, "got 9 fields"),
    "no text": (b"# a.jpg\n# \xff\xfe.jpg\n", 2, "UTF-8"),
    "absolute": ("# a.jpg\n# /etc/a.jpg\n", 2, "absolute"),
    "parent": ("# e/../../a.jpg\n", 1, "'..'"),
    "official parent": ("a.jpg\n0\n../b.jpg\n0\n", 3, "'..'"),
    "drive": ("# C:/a.jpg\n", 1, "absolute"),
    "drive without a root": ("# C:a.jpg\n", 1, "absolute"),
    "network share": ("# \\\\host\\share\\a.jpg\n", 1, "absolute"),
    "backslash": ("# e\\..\\a.jpg\n", 1, "backslash"),
    "control character": ("# e/a\x00.jpg\n", 1, "control"),
}


@pytest.mark.parametrize(("text", "line", "words"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_files_are_refused_with_file_and_line(
    tmp_path: Path, text: str | bytes, line: int, words: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(LabelError) as caught:
        read_labels(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert words in message
    assert "\n" not in message


def test_find_labels_prefers_retinaface_labels(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find_labels(tmp_path, "val")
    assert "prepare_widerface.py" in str(caught.value)
    official = tmp_path / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    official.parent.mkdir()
    official.touch()
    assert find_labels(tmp_path, "val") == official
    retinaface = tmp_path / "val" / "label.txt"
    retinaface.parent.mkdir()
    retinaface.touch()
    assert find_labels(tmp_path, "val") == retinaface
    with pytest.raises(FileNotFoundError):
        find_labels(tmp_path, "train")


def test_photo_path_stays_inside(tmp_path: Path) -> None:
    images, outside = tmp_path / "images", tmp_path / "outside"
    images.mkdir()
    outside.mkdir()
    assert photo_path(images, "e/a.jpg") == images / "e" / "a.jpg"
    for bad in ("../outside/a.jpg", str(outside / "a.jpg"), "e\\..\\..\\a.jpg", "", "."):
        with pytest.raises(LabelError, match="refused"):
            photo_path(images, bad)


def test_photo_path_follows_links(tmp_path: Path) -> None:
    images, outside = tmp_path / "images", tmp_path / "outside"
    (images / "real").mkdir(parents=True)
    outside.mkdir()
    try:
        (images / "inner").symlink_to(images / "real", target_is_directory=True)
        (images / "outer").symlink_to(outside, target_is_directory=True)
        (tmp_path / "linked").symlink_to(images, target_is_directory=True)
    except OSError:
        pytest.skip("this system does not let us make symbolic links")
    assert photo_path(images, "inner/a.jpg") == images / "inner" / "a.jpg"
    assert photo_path(tmp_path / "linked", "real/a.jpg").parent.name == "real"
    with pytest.raises(LabelError, match="leads out"):
        photo_path(images, "outer/a.jpg")
