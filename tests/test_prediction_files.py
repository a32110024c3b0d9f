from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from utils.prediction_files import (
    Detections,
    PredictionError,
    prediction_file,
    read_predictions,
    require_unused,
    write_predictions,
)

PHOTO = "0--Parade/0_Parade_a_1.jpg"
NONE: Detections = (np.zeros((0, 4)), np.zeros(0))
TWO: Detections = (
    np.array([[17.25, 8.0, 47.25, 49.5], [449.0, 330.0, 571.0, 479.0]]),
    np.array([0.112, 0.987]),
)


def given(folder: Path, text: str | bytes) -> Path:
    file = prediction_file(folder, PHOTO)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_the_format(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out", {PHOTO: TWO, "1--X/b.jpg": NONE})
    assert (tmp_path / "out/0--Parade/0_Parade_a_1.txt").read_bytes() == (
        b"0_Parade_a_1\n2\n"
        b"17.250 8.000 30.000 41.500 0.112\n"
        b"449.000 330.000 122.000 149.000 0.987\n"
    )
    assert (tmp_path / "out/1--X/b.txt").read_bytes() == b"b\n0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 4000, (200, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 900, (200, 2))], axis=1)
    # Near 1 and near 0: what a detector is sure of must keep its order.
    logits = rng.uniform(-12, 12, 200)
    scores = (1 / (1 + np.exp(-logits))).astype(np.float32).astype(np.float64)
    write_predictions(tmp_path / "out", {PHOTO: (boxes, scores), "e/b.jpg": NONE})
    read = read_predictions(tmp_path / "out", [PHOTO, "e/b.jpg"])
    assert list(read) == [PHOTO, "e/b.jpg"]
    np.testing.assert_allclose(read[PHOTO][0], boxes, atol=1.01e-3)
    np.testing.assert_array_equal(read[PHOTO][1].astype(np.float32), scores)
    assert read["e/b.jpg"][0].shape == (0, 4)
    assert read["e/b.jpg"][1].shape == (0,)


def test_an_older_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out", {PHOTO: TWO})
    given(tmp_path / ".out.part", "left by a run that was killed")
    write_predictions(tmp_path / "out", {"e/b.jpg": NONE})
    files = [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.txt")]
    assert files == ["out/e/b.txt"]


def test_only_an_unused_folder_passes(tmp_path: Path) -> None:
    require_unused(tmp_path / "new")
    (tmp_path / "empty").mkdir()
    require_unused(tmp_path / "empty")
    file = given(tmp_path / "used", "x")
    for taken in (tmp_path / "used", file):
        with pytest.raises(PredictionError, match="not an empty folder"):
            require_unused(taken)


NAMES = ["0_Parade_a_1", "0_Parade_a_1.jpg", PHOTO, "C:\\wider\\" + PHOTO.replace("/", "\\")]
ROWS = {
    "integers and fractions": "2\n17.25 8 30 41.5 0.112\n449 330 122 149 0.987\n",
    "tabs, spaces, Windows": "2\r\n17.25\t8  30 41.5 1.12e-1 \r\n449 330 122 149 .987\r\n\r\n",
    "no line end": "2\n17.25 8.0 30.0 41.5 0.112\n449.0 330.0 122.0 149.0 0.987",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_other_tools_files_are_understood(tmp_path: Path, name: str, rows: str) -> None:
    given(tmp_path, f"{name}\n{rows}")
    boxes, scores = read_predictions(tmp_path, [PHOTO])[PHOTO]
    np.testing.assert_array_equal(boxes, TWO[0])
    np.testing.assert_array_equal(scores, TWO[1])


MALFORMED: dict[str, tuple[str | bytes, int | None, str]] = {
    "empty": ("", 1, "ends early"),
    "name alone": ("0_Parade_a_1\n", 2, "ends early"),
    "another photo": ("0_Parade_a_2\n0\n", 1, "'0_Parade_a_2' in the file of 0_Parade_a_1"),
    "no count": ("0_Parade_a_1\n1 2 3 4 0.5\n", 2, "number of detections"),
    "negative count": ("0_Parade_a_1\n-1\n", 2, "number of detections"),
    "count of other digits": ("0_Parade_a_1\n²\n", 2, "number of detections"),
    "too few rows": ("0_Parade_a_1\n2\n1 2 3 4 0.5\n", 2, "says 2 detections, but 1 rows"),
    "too many rows": ("0_Parade_a_1\n0\n1 2 3 4 0.5\n", 2, "says 0 detections, but 1 rows"),
    "no score": ("0_Parade_a_1\n2\n1 2 3 4 0.5\n1 2 3 4\n", 4, "five finite numbers"),
    "six columns": ("0_Parade_a_1\n1\n1 2 3 4 0.5 0\n", 3, "five finite numbers"),
    "word": ("0_Parade_a_1\n1\n1 2 three 4 0.5\n", 3, "'1 2 three 4 0.5'"),
    "nan": ("0_Parade_a_1\n1\n1 2 3 4 nan\n", 3, "finite"),
    "infinity": ("0_Parade_a_1\n1\n1 2 inf 4 0.5\n", 3, "finite"),
    "blank row": ("0_Parade_a_1\n2\n1 2 3 4 0.5\n\n1 2 3 4 0.5\n", 4, "five finite numbers"),
    "negative width": ("0_Parade_a_1\n1\n1 2 -3 4 0.5\n", 3, "-3 x 4"),
    "no text": (b"0_Parade_a_1\n1\n\xff\xfe\n", None, "UTF-8"),
}


@pytest.mark.parametrize(("text", "line", "words"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_files_are_refused_with_file_and_line(
    tmp_path: Path, text: str | bytes, line: int | None, words: str
) -> None:
    file = given(tmp_path, text)
    with pytest.raises(PredictionError) as caught:
        read_predictions(tmp_path, [PHOTO])
    message = str(caught.value)
    assert message.startswith(f"{file}: " if line is None else f"{file}:{line}: ")
    assert words in message
    assert "\n" not in message


def test_photos_without_a_file_are_left_out_and_others_not_looked_at(tmp_path: Path) -> None:
    write_predictions(tmp_path / "out", {PHOTO: TWO})
    prediction_file(tmp_path / "out", "0--Parade/c.jpg").write_text("nonsense")
    assert list(read_predictions(tmp_path / "out", ["e/b.jpg", PHOTO])) == [PHOTO]


def test_a_folder_without_any_prediction_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PredictionError) as caught:
        read_predictions(tmp_path, [PHOTO, "e/b.jpg"])
    assert "any of the 2 photos" in str(caught.value)
    assert str(prediction_file(tmp_path, PHOTO)) in str(caught.value)
