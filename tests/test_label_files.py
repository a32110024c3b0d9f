import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import utils.widerface
from utils.label_files import read_label_source
from utils.photo_labels import Labels
from utils.widerface import LabelError

COCO = {
    "info": {"year": 2026},
    "images": [
        {"id": 7, "file_name": "e/a.jpg", "width": 120, "height": 100},
        {"id": "b", "file_name": "b.png"},
        {"id": 9, "file_name": "./e//none.jpg", "height": 10, "width": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 30.5, 40], "iscrowd": 0},
        {"id": 2, "image_id": "b", "category_id": 2, "bbox": [1, 2, 3, 4]},
        {
            "id": 3,
            "image_id": 7,
            "category_id": 1,
            "bbox": [-5, 90, 40, 60],
            "iscrowd": 1,
            "segmentation": {"counts": [3, 5], "size": [100, 120]},
        },
        {"id": 4, "image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 0]},
    ],
    "categories": [{"id": 1, "name": "face"}, {"id": 2, "name": "1"}, {"id": 3, "name": "cat"}],
}

Change = Callable[[dict[str, Any]], object]


def write(path: Path, content: str | bytes | dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def boxes(labels: Labels, height: int = 100, width: int = 120) -> dict[str, list[list[float]]]:
    assert len({photo.path for photo in labels.photos}) == len(labels.photos)
    return {
        photo.path: photo.on(
            *map(int, photo.size[::-1] if photo.size else (height, width))
        ).tolist()
        for photo in labels.photos
    }


def refusal(path: Path, photos: list[str] | None = None, classes: tuple[str, ...] = ()) -> str:
    with pytest.raises(LabelError) as caught:
        read_label_source(path, photos or [], classes)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_coco(tmp_path: Path) -> None:
    labels = read_label_source(write(tmp_path / "a.json", COCO), [])
    assert boxes(labels) == {
        "e/a.jpg": [[10, 20, 40.5, 60], [-5, 90, 35, 150], [0, 0, 5, 0]],
        "b.png": [[1, 2, 4, 6]],
        "e/none.jpg": [],
    }
    hidden = "1 (2), face (2)"
    assert labels.notes == [f"{tmp_path / 'a.json'}: label classes hidden (boxes): {hidden}"]
    assert labels.faults == {}


def test_coco_is_told_by_its_content_too(tmp_path: Path) -> None:
    text = "\ufeff\r\n " + json.dumps(COCO, indent=1).replace("\n", "\r\n")
    assert len(read_label_source(write(tmp_path / "labels", text), []).photos) == 3


def test_categories_are_chosen_by_name_before_id(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", COCO)
    labels = read_label_source(path, [], ("1",))
    assert boxes(labels)["e/a.jpg"] == [[0, 0, 5, 0]]
    assert labels.notes == [
        f"{path}: label classes hidden (boxes): 1 (2); not hidden: face (2)",
    ]
    assert boxes(labels) == boxes(read_label_source(path, [], ("2",)))
    assert boxes(read_label_source(path, [], ("face", "2"))) == boxes(read_label_source(path, []))
    # A category that no box has may be chosen: a photo is then one without a face.
    assert boxes(read_label_source(path, [], ("cat",))) == {
        "e/a.jpg": [],
        "b.png": [],
        "e/none.jpg": [],
    }
    assert refusal(path, classes=("dog",)) == f"{path}: no class 'dog'; there are: face, 1, cat"


def test_labels_of_another_size_are_refused(tmp_path: Path) -> None:
    first, second, _ = read_label_source(write(tmp_path / "a.json", COCO), []).photos
    assert first.on(100, 120).shape == (3, 4)
    with pytest.raises(LabelError, match="gives 120 x 100 pixels, the upright photo has 100 x 120"):
        first.on(120, 100)
    assert second.on(5, 7).tolist() == [[1, 2, 4, 6]]


def at(*keys: str | int, value: object = None) -> Change:
    """Change or, without a value, remove one place of the document."""

    def change(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        if value is None:
            del document[keys[-1]]
        else:
            document[keys[-1]] = value

    return change


NOT_COCO: dict[str, tuple[Change, str]] = {
    "no images": (at("images"), "lists images, annotations, categories"),
    "no categories": (at("categories"), "lists images, annotations, categories"),
    "annotations no list": (at("annotations", value={}), "lists images"),
    "image no object": (at("images", 1, value=5), "image at index 1: expected an object, got 5"),
    "image without id": (at("images", 1, "id"), "image at index 1: expected id to be"),
    "id no number": (at("images", 1, "id", value=True), "image True: expected id to be"),
    "id a list": (at("images", 1, "id", value=[[1]]), "image [[1]]: expected id to be"),
    "second id": (at("images", 1, "id", value=7), "image 7: this id or this file_name occurs a"),
    "second name": (at("images", 1, "file_name", value="e/./a.jpg"), "image 'b': this id or"),
    "no file name": (at("images", 0, "file_name"), "image 7: expected file_name to be text"),
    "name up": (at("images", 0, "file_name", value="../a.jpg"), "image 7: file_name '../a.jpg' re"),
    "absolute": (at("images", 0, "file_name", value="/etc/a.jpg"), "refused: it is absolute"),
    "drive": (at("images", 0, "file_name", value="C:a.jpg"), "refused: it is absolute"),
    "backslash": (at("images", 0, "file_name", value="e\\a.jpg"), "refused: it contains a backsl"),
    "line break": (at("images", 0, "file_name", value="e\na.jpg"), "contains control characters"),
    "lone surrogate": (at("images", 0, "file_name", value="\udcff.jpg"), "control characters"),
    "width alone": (at("images", 0, "height"), "image 7: expected a width and a height above 0"),
    "no size": (at("images", 0, "width", value=0), "image 7: expected a width and a height above"),
    "size a text": (at("images", 0, "width", value="120"), "image 7: expected a width and a he"),
    "no image id": (at("annotations", 2, "image_id"), "annotation 3: expected image_id to be a"),
    "other image": (at("annotations", 2, "image_id", value=8), "annotation 3: there is no image 8"),
    "other type": (at("annotations", 2, "image_id", value="7"), "annotation 3: there is no image"),
    "no id, but an index": (at("annotations", 2, value={"bbox": [1]}), "annotation at index 2: "),
    "no category": (at("annotations", 1, "category_id"), "annotation 2: expected category_id"),
    "other category": (at("annotations", 1, "category_id", value=4), "there is no category 4"),
    "no bbox": (at("annotations", 1, "bbox"), "annotation 2: expected bbox to be a list, got None"),
    "empty bbox": (at("annotations", 1, "bbox", value=[]), "expected bbox to be 4 numbers, got []"),
    "five": (at("annotations", 1, "bbox", value=[1, 2, 3, 4, 5]), "expected bbox to be 4 numbers"),
    "text": (at("annotations", 1, "bbox", value=[1, 2, "3", 4]), "expected bbox to be 4 numbers"),
    "null": (at("annotations", 1, "bbox", 2, value=[]), "expected bbox to be 4 numbers"),
    "truth": (at("annotations", 1, "bbox", 2, value=True), "expected bbox to be 4 numbers"),
    "nan": (
        at("annotations", 1, "bbox", 2, value=float("nan")),
        "annotation 2: bbox: expected fin",
    ),
    "infinity": (at("annotations", 1, "bbox", 0, value=float("inf")), "expected finite numbers"),
    "too long": (at("annotations", 1, "bbox", 0, value=10**400), "expected finite numbers"),
    "negative": (
        at("annotations", 1, "bbox", 3, value=-4),
        "expected a width and a height of 0 or",
    ),
    "huge": (at("annotations", 1, "bbox", 3, value=1e6), "expected a box within 100000 px"),
    "right of it": (
        at("annotations", 0, "bbox", value=[120, 10, 5, 5]),
        "annotation 1: bbox [120, 10, 5, 5] lies outside its image of 120 x 100 pixels",
    ),
    "above it": (at("annotations", 0, "bbox", value=[9, -5, 5, 5]), "lies outside its image"),
    "category without name": (at("categories", 0, "name"), "category 1: expected name to be text"),
    "second category": (at("categories", 1, "id", value=1), "category 1: a second category with"),
    "escape": (at("categories", 1, "name", value="\x1b[2J"), "a name without control characters"),
}


@pytest.mark.parametrize(("change", "words"), NOT_COCO.values(), ids=NOT_COCO.keys())
def test_malformed_coco_is_refused_with_id_or_index(
    tmp_path: Path, change: Change, words: str
) -> None:
    document = json.loads(json.dumps(COCO))
    change(document)
    message = refusal(write(tmp_path / "a.json", document))
    assert message.startswith(f"{tmp_path / 'a.json'}: ")
    assert words in message


NOT_JSON = {
    "empty": (b"", ":1: broken JSON"),
    "cut off": (b'{"images": [\n{"id": 3,\n', ":3: broken JSON"),
    "list": (b"[]", "expected COCO's JSON"),
    "utf-16": ("{}".encode("utf-16"), ":1: not UTF-8"),
    "latin-1": (b'{"images":\n\n["\xe9"]}', ":3: not UTF-8"),
    "nested": (b'{"a":' + b"[" * 200_000, "JSON that cannot be read: "),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "JSON that cannot be read: "),
    "key twice": (b'{"annotations": [],\n "images": [{"id": 3, "id": 3}]}', "twice, its id is 3: "),
    "list twice": (
        b'{"annotations": [1], "images": [], "annotations": []}',
        "one of its keys twice",
    ),
    "nul": (b"\0" * 100, ":1: broken JSON"),
}


@pytest.mark.parametrize(("data", "words"), NOT_JSON.values(), ids=NOT_JSON.keys())
def test_broken_json_is_refused(tmp_path: Path, data: bytes, words: str) -> None:
    message = refusal(write(tmp_path / "a.JSON", data))
    assert message.startswith(f"{tmp_path / 'a.JSON'}:")
    assert words in message


PHOTOS = ["e/a.b.jpg", "c.PNG", "none.jpg", "unlisted.jpg"]


def test_yolo(tmp_path: Path) -> None:
    write(tmp_path / "e" / "a.b.txt", "\ufeff0 0.5 0.5 0.25 0.5\r\n\r\n 2 .1 0 0.2 0.5 0.875 \r\n")
    write(tmp_path / "c.TXT", "1 1 1 1 1\n")
    write(tmp_path / "none.txt", " \n")
    labels = read_label_source(tmp_path, PHOTOS)
    found = boxes(labels, height=100, width=200)
    assert found.keys() == {"e/a.b.jpg", "c.PNG", "none.jpg"}  # what is missing is not listed
    np.testing.assert_allclose(found["e/a.b.jpg"], [[75, 25, 125, 75], [0, -25, 40, 25]])
    assert found["c.PNG"] == [[100, 50, 300, 150]]
    assert found["none.jpg"] == []
    assert labels.notes == [f"{tmp_path}: label classes hidden (boxes): 0 (1), 1 (1), 2 (1)"]

    chosen = read_label_source(tmp_path, PHOTOS, ("2", "1"))
    assert [len(rows) for rows in boxes(chosen).values()] == [1, 1, 0]
    assert chosen.notes[0].endswith(": 1 (1), 2 (1); not hidden: 0 (1)")
    assert refusal(tmp_path, PHOTOS, ("face",)).endswith("no class 'face'; there are: 0, 1, 2")


def test_boxes_on_whole_pixels_come_back_whole(tmp_path: Path) -> None:
    """Six digits, as tools write them, must not make a box hide a pixel more."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(300):
        start = rng.integers(0, (1500, 1000))
        end = start + 1 + rng.integers(0, 100, 2)
        centre, sides = (start + end) / 2 / (1600, 1100), (end - start) / (1600, 1100)
        rows.append(((*start, *end), " ".join(f"{value:.6f}" for value in (*centre, *sides))))
    write(tmp_path / "a.txt", "".join(f"0 {row}\n" for _, row in rows))
    (photo,) = read_label_source(tmp_path, ["a.jpg"]).photos
    np.testing.assert_array_equal(photo.on(1100, 1600), [box for box, _ in rows])


def test_yolo_files_and_photos_that_do_not_pair(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "classes.txt", "e/classes.txt", "README.txt", "e/b.txt"):
        write(tmp_path / name, "0 0.5 0.5 0.1 0.1" if name in ("a.txt", "b.txt") else "face")
    labels = read_label_source(tmp_path, ["a.jpg", "a.png", "b.jpg", "e/classes.bmp.jpg"])
    assert boxes(labels).keys() == {"b.jpg"}
    assert labels.faults.keys() == {"a.jpg", "a.png"}
    assert "a.txt would belong to 2 photos, 'a.jpg' and 'a.png'" in labels.faults["a.png"]
    assert labels.notes[1] == (
        f"{tmp_path}: 2 .txt files belong to no photo, first {tmp_path / 'README.txt'}"
    )
    assert "no label file in this folder" in refusal(tmp_path, ["x.jpg"])
    assert refusal(tmp_path, ["classes.jpg"]).startswith(f"{tmp_path / 'classes.txt'}:1: expected")


NOT_YOLO = {
    "word": "face 0.5 0.5 0.1 0.1",
    "four": "0 0.5 0.5 0.1",
    "polygon": "0 0.5 0.5 0.1 0.1 0.2 0.2",
    "class of half": "0.5 0.5 0.5 0.1 0.1",
    "negative class": "-1 0.5 0.5 0.1 0.1",
    "class nan": "nan 0.5 0.5 0.1 0.1",
    "huge class": "1e300 0.5 0.5 0.1 0.1",
    "comma": "0,0.5,0.5,0.1,0.1",
    "pixels": "0 53 40 20 30",
    "nan": "0 0.5 nan 0.1 0.1",
    "infinity": "0 0.5 0.5 inf 0.1",
    "negative width": "0 0.5 0.5 -0.0005 0.1",
    "centre outside": "0 -0.1 0.5 0.4 0.1",
    "confidence of two": "0 0.5 0.5 0.1 0.1 2",
    "nul": "\0",
}


@pytest.mark.parametrize("row", NOT_YOLO.values(), ids=NOT_YOLO.keys())
def test_malformed_yolo_is_refused_with_file_and_line(tmp_path: Path, row: str) -> None:
    write(tmp_path / "e" / "b.txt", "")
    path = write(tmp_path / "e" / "a.txt", f"0 0.5 0.5 0.1 0.1\n\n{row}\n")
    message = refusal(tmp_path, ["e/a.jpg", "e/b.jpg"])
    assert message.startswith(f"{path}:3: expected ")
    assert repr(row) in message


def test_other_encodings_of_yolo_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "0 0.5 0.5 0.1 0.1\n".encode("utf-16"))
    assert refusal(tmp_path, ["a.jpg"]).startswith(f"{path}:1: not UTF-8 text")


def test_wider_and_retinaface_as_before(tmp_path: Path) -> None:
    for text in ("# a.jpg\n1 2 3 4\n", "a.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n"):
        path = write(tmp_path / "labels", text)
        labels = read_label_source(path, [])
        assert boxes(labels) == {"a.jpg": [[1, 2, 4, 6]]}
        assert labels.notes == []
    assert "no classes to choose from" in refusal(path, classes=("face",))
    assert refusal(write(path, "# a.jpg\n1 2 3\n")).startswith(f"{path}:2: ")


def test_what_is_no_label_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        read_label_source(tmp_path / "nothing.json", [])
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "neither a file nor a folder" in refusal(tmp_path / "pipe")
    monkeypatch.setattr(utils.widerface, "LARGEST_FILE", 1 << 20)
    (tmp_path / "photos").mkdir()
    for name in ("labels.txt", "labels.json", "photos/a.txt"):
        path = write(tmp_path / name, b" " * ((1 << 20) + 1))
        place = path.parent if name.startswith("photos") else path
        assert refusal(place, ["a.jpg"]) == f"{path}: larger than 1 MiB; split the label file"
