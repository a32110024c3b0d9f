"""Label files that nobody wrote: whatever the bytes, they are read right or refused in one line."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from utils.boxes import xyxy_to_xywh
from utils.image_files import OTHER_SUFFIXES, PHOTO_SUFFIXES
from utils.label_files import read_label_source
from utils.outputs import OutputError, PhotoTree, copy_path, jobs_of
from utils.photo_labels import Labels
from utils.widerface import LARGEST, LabelError

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])

PHOTOS = ["a.jpg", "e/b.png", "c d.JPG", "c d.png", "e/é.webp"]
STEMS = ["a", "e/b", "c d", "e/é", "classes", "other"]

numbers = st.one_of(
    st.integers(-5, 200),
    st.floats(0, 1),
    st.floats(),
    st.integers(),
    st.sampled_from([10**400, -(10**9), 1e308, -0.0005, 1.0009, LARGEST, LARGEST + 1]),
)
names = st.one_of(
    st.sampled_from([*PHOTOS, "./a.jpg", "e//b.png", "../a.jpg", "/a.jpg", "C:a.jpg", "e\\b.png"]),
    st.text(max_size=12).map(lambda text: f"{text}.jpg"),
    st.text(max_size=12),
)
junk = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)


@contextmanager
def folder() -> Iterator[Path]:
    """A folder of its own for each example, which pytest's would not be."""
    place = Path(tempfile.mkdtemp())
    try:
        yield place
    finally:
        shutil.rmtree(place)


def read(path: Path, classes: tuple[str, ...] = ()) -> Labels | None:
    """Read and check what holds for all labels; None where they were refused, as they should."""
    try:
        labels = read_label_source(path, PHOTOS, classes)
    except LabelError as error:
        message = str(error)
        assert message.startswith(str(path))
        assert message.isprintable()
        assert len(message) < 1000
        return None
    seen = set()
    for photo in labels.photos:
        relative = PurePosixPath(photo.path)
        assert not relative.is_absolute()
        assert ".." not in relative.parts
        assert "\\" not in photo.path
        assert photo.path.isprintable()
        assert relative not in seen
        seen.add(relative)
        width, height = photo.size or (640, 480)
        if not (float(width).is_integer() and width < LARGEST and float(height).is_integer()):
            continue
        boxes = photo.on(int(height), int(width))
        assert boxes.dtype == np.float64
        assert boxes.shape == (len(photo.boxes), 4)
        assert np.isfinite(boxes).all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()
        assert np.abs(boxes).max(initial=0) <= 2 * LARGEST
    assert all(note.startswith(str(path)) for note in labels.notes)
    return labels


@st.composite
def documents(draw: st.DrawFn) -> Any:
    """COCO's JSON that is right but for odd names and numbers, and then one thing that is not.

    A file in which much is wrong would be refused for the first of it.
    """
    files = draw(st.lists(st.sampled_from(PHOTOS) | names, max_size=3))
    box = st.lists(st.integers(0, 140), min_size=4, max_size=4)
    boxes = draw(st.lists(box | st.lists(numbers, min_size=4, max_size=4), max_size=3))
    document: dict[str, Any] = {
        "images": [
            {"id": index, "file_name": name, "width": 200, "height": 150}
            for index, name in enumerate(files)
        ],
        "annotations": [
            {"id": index, "image_id": index % max(len(files), 1), "category_id": 1, "bbox": box}
            for index, box in enumerate(boxes)
        ],
        "categories": [{"id": 0, "name": draw(st.text(max_size=4))}, {"id": 1, "name": "face"}],
    }
    if draw(st.booleans()):
        holder: Any = document
        while True:  # down to a random place
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(holder[key], dict | list) and draw(st.integers(0, 3)):
                holder = holder[key]
                continue
            if draw(st.booleans()):
                holder[key] = draw(junk)
            else:
                del holder[key]
            break
    return document


small = st.integers(0, 3)


@FUZZ
@given(documents(), st.booleans(), st.sampled_from([(), ("1",), ("face", "0")]))
def test_any_json(document: Any, is_ascii: bool, classes: tuple[str, ...]) -> None:
    text = json.dumps(document, ensure_ascii=is_ascii)
    with folder() as place:
        path = place / "labels.json"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        read(path, classes)


@st.composite
def rows(draw: st.DrawFn) -> str:
    """Lines of the text formats: mostly of one of them, with what occurs in files added."""
    columns = draw(st.sampled_from([1, 2, 4, 5, 5, 6, 10, 20]))
    fields = draw(st.lists(numbers, min_size=columns, max_size=columns))
    row = " ".join(map(str, fields))
    path = draw(names)
    return draw(st.sampled_from([row, row, f"# {path}", path, str(draw(st.integers(0, 4))), ""]))


texts = st.builds(
    lambda lines, end, start: (start + end.join(lines)).encode("utf-8", "surrogatepass"),
    st.lists(rows(), max_size=12),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n", "\x0b", "\u2028"]),
    st.sampled_from(["", "", "\ufeff", " ", "{", "# a.jpg\n", "a.jpg\n1\n"]),
)
yolo_texts = st.builds(
    lambda found, extra: "\n".join(" ".join(map(str, row)) for row in found).encode() + extra,
    st.lists(
        st.tuples(small, *[st.floats(0, 1)] * 4) | st.lists(numbers, min_size=3, max_size=7),
        max_size=4,
    ),
    st.sampled_from([b"", b"", b"\n", b"\r\n0 0.5 0.5 0.1 0.1 0.9", b"\xff"]),
)
contents = st.one_of(texts, st.binary(max_size=60), texts.map(lambda data: data[:-3]))


@FUZZ
@given(contents, st.sampled_from(["labels.txt", "labels.json", "labels"]))
@example(b"# a.jpg\n1 2 3 4\n\xef\xbb\xbf# b.jpg\n", "labels.txt")
@example(b"", "labels")
def test_any_text(data: bytes, name: str) -> None:
    with folder() as place:
        path = place / name
        path.write_bytes(data)
        read(path)


@FUZZ
@given(
    st.dictionaries(st.sampled_from(STEMS), contents | yolo_texts | yolo_texts, max_size=4),
    st.sampled_from([(), ("0",), ("face",)]),
)
def test_any_folder(files: dict[str, bytes], classes: tuple[str, ...]) -> None:
    with folder() as place:
        (place / "e").mkdir()
        for stem, data in files.items():
            (place / f"{stem}.txt").write_bytes(data)
        labels = read(place, classes)
        if labels is not None:
            listed = {photo.path for photo in labels.photos}
            assert listed | set(labels.faults) == {
                photo for photo in PHOTOS if photo[: photo.rindex(".")] in files
            }
            for photo in labels.photos:
                if not files[photo.path[: photo.path.rindex(".")]].strip():
                    assert len(photo.boxes) == 0


sides = st.integers(1, 5000)
places = st.floats(-50, 5000, width=32) | st.integers(-50, 5000)
faces = st.lists(st.tuples(places, places, sides, sides), max_size=5)


@FUZZ
@given(st.lists(faces, min_size=1, max_size=5), st.integers(1, 9000), st.integers(1, 9000))
def test_what_was_written_is_read(photos: list[Any], width: int, height: int) -> None:
    """The same boxes in every format; YOLO's hold the centre in the photo."""
    official, retinaface = [], []
    coco: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": 1, "name": "face"}]
    expected, fractions = {}, {}
    for index, boxes in enumerate(photos):
        path = f"e/{index} é.jpg"
        expected[path] = [list(map(float, box)) for box in boxes]
        fractions[path] = [
            [(x % width) / width, (y % height) / height, min(w / width, 1), min(h / height, 1)]
            for x, y, w, h in boxes
        ]
        written = [" ".join(map(repr, row)) for row in expected[path]]
        retinaface += [f"# {path}", *written]
        official += [path, str(len(boxes)), *(f"{row} 0 0 0 1 0 0" for row in written)]
        coco["images"].append({"id": index, "file_name": path})
        coco["annotations"] += [
            {"image_id": index, "category_id": 1, "bbox": row} for row in expected[path]
        ]
    with folder() as place:
        for name, text in (
            ("official", "\n".join(official)),
            ("retinaface", "\n".join(retinaface)),
            ("coco", json.dumps(coco)),
        ):
            (place / name).write_text(text, encoding="utf-8")
            labels = read_label_source(place / name, [])
            assert [photo.path for photo in labels.photos] == list(expected)
            for photo in labels.photos:
                found = xyxy_to_xywh(photo.on(height, width))
                wanted = np.array(expected[photo.path]).reshape(-1, 4)
                np.testing.assert_allclose(found, wanted, atol=1e-9)
        (place / "yolo" / "e").mkdir(parents=True)
        for path, rows_ in fractions.items():
            lines = [f"3 {' '.join(map(repr, row))}\n" for row in rows_]
            file = (place / "yolo" / path).with_suffix(".txt")
            file.write_text("".join(lines), encoding="utf-8")
        for photo in read_label_source(place / "yolo", list(expected)).photos:
            box = xyxy_to_xywh(photo.on(height, width))
            box[:, :2] += box[:, 2:] / 2
            shape = [width, height, width, height]
            wanted = np.array(fractions[photo.path]).reshape(-1, 4) * shape
            np.testing.assert_allclose(box, wanted, atol=0.02)  # rounded to hundredths of a pixel


@FUZZ
@given(st.lists(names, max_size=3, unique=True))
def test_names_never_lead_out_of_the_output(listed: list[str]) -> None:
    with folder() as place:
        root, output = place / "in", place / "out"
        root.mkdir()
        output.mkdir()
        path = place / "labels.json"
        images = [{"id": index, "file_name": name} for index, name in enumerate(listed)]
        document = {"images": images, "annotations": [], "categories": []}
        path.write_bytes(json.dumps(document).encode())
        labels = read(path)
        if labels is None:
            return
        tree = PhotoTree(root, root, output, PHOTOS, [])
        try:
            jobs = jobs_of(tree, labels)
        except LabelError:
            return
        for job in jobs:
            assert job.photo.resolve().is_relative_to(root.resolve())
            try:
                target = copy_path(output, job.relative)
            except (OutputError, OSError):  # too long a name, say
                continue
            assert target.resolve().is_relative_to(output.resolve())
            assert target.suffix.lower() in PHOTO_SUFFIXES | OTHER_SUFFIXES
        assert {job.relative for job in jobs if job.fault is None} <= set(PHOTOS)
