from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from utils.face_dataset import (
    Batch,
    DataError,
    DetectorSamples,
    GeneratorSamples,
    Source,
    collate,
    epoch_loader,
    labelled_source,
    validation_source,
    wider_source,
)

BLURRED = "images_G2_M80"


@pytest.fixture
def tree(make_tree: Callable[..., Path], tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", photos=7)


def generator_samples(source: Source, seed: int = 3, frame: int = 64) -> GeneratorSamples:
    return GeneratorSamples(source, seed, frame, (0.7, 1.3), (0.95, 1.05), 1, 0.5, 80)


def blurred_source(tree: Path) -> Source:
    return wider_source(tree, "train", blurred=tree / "train" / BLURRED)


def same(a: Batch, b: Batch) -> bool:
    return (
        torch.equal(a.images, b.images)
        and a.names == b.names
        and torch.equal(a.boxes, b.boxes)
        and torch.equal(a.present, b.present)
        and (a.blurred is None) == (b.blurred is None)
        and (a.blurred is None or b.blurred is None or torch.equal(a.blurred, b.blurred))
    )


@pytest.mark.parametrize("kind", ["generator", "detector"])
def test_a_sample_depends_on_its_position_alone(tree: Path, kind: str) -> None:
    source = blurred_source(tree)
    samples: GeneratorSamples | DetectorSamples = generator_samples(source)
    other: GeneratorSamples | DetectorSamples = generator_samples(source, seed=4)
    if kind == "detector":
        samples = DetectorSamples(source, 3, 64, (0.5, 1.0))
        other = DetectorSamples(source, 4, 64, (0.5, 1.0))
    first = samples[(1, 2, 5)]
    samples[(0, 0, 0)]
    again = samples[(1, 2, 5)]
    for a, b in zip(first[0], again[0], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first[1], again[1])
    for elsewhere in (samples[(0, 2, 5)], samples[(1, 1, 5)], other[(1, 2, 5)]):
        assert elsewhere[2] == first[2]
        assert (elsewhere[0][0] != first[0][0]).any()


def test_an_epoch_resumed_in_the_middle_goes_on_as_it_would_have(tree: Path) -> None:
    samples = generator_samples(blurred_source(tree))
    whole = list(epoch_loader(samples, 2, 1, 4, 0, 0))
    assert len(whole) == 3  # the seventh photo makes no batch
    rest = list(epoch_loader(samples, 2, 1, 4, 1, 0))
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(whole[1:], rest, strict=True))
    (worked,) = list(epoch_loader(samples, 2, 1, 4, 2, workers=1))  # in a process of its own
    assert same(worked, whole[2])
    other = list(epoch_loader(samples, 2, 1, 5, 0, 0))
    assert [b.names for b in other] != [b.names for b in whole]


def test_an_epoch_shows_every_photo_once(tree: Path) -> None:
    samples = generator_samples(blurred_source(tree))
    names = [name for batch in epoch_loader(samples, 1, 0, 0, 0, 0) for name in batch.names]
    assert sorted(names) == sorted(photo.path for photo in samples.source.photos)


def test_batches_drop_images_without_faces() -> None:
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    faces = np.array([[1.0, 2, 5, 6], [2, 2, 7, 7]])
    batch = collate(
        [
            ([image, image + 1], faces[:1], "a"),
            ([image + 2, image + 3], np.zeros((0, 4)), "b"),
            ([image + 4, image + 5], faces, "c"),
        ]
    )
    assert batch is not None
    assert batch.names == ["a", "c"]
    assert batch.images.shape == (2, 3, 8, 8)
    assert batch.images.dtype == torch.uint8
    assert batch.images[:, 0, 0, 0].tolist() == [0, 4]
    assert batch.blurred is not None
    assert batch.blurred[:, 0, 0, 0].tolist() == [1, 5]
    assert batch.present.tolist() == [[True, False], [True, True]]
    assert batch.boxes[batch.present].tolist() == [faces[0].tolist(), *faces.tolist()]
    single = collate([([image], faces, "a")])
    assert single is not None
    assert single.blurred is None
    assert collate([([image], np.zeros((0, 4)), "a")]) is None


def test_copies_made_on_the_way_equal_those_of_gaussblur(tree: Path) -> None:
    """`--photos` blurs while training; the result must be what gaussblur.py writes to disk."""
    on_disk = generator_samples(blurred_source(tree))
    on_the_way = generator_samples(
        labelled_source(tree / "train" / "images", tree / "train" / "label.txt")
    )
    for index in range(len(on_disk)):
        disk, way = on_disk[(0, 0, index)], on_the_way[(0, 0, index)]
        assert disk[2] == way[2]
        for a, b in zip(disk[0], way[0], strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(disk[1], way[1])
        assert (disk[0][0] != disk[0][1]).any()


def test_photos_without_a_usable_face_are_left_out(tree: Path) -> None:
    labels = tree / "train" / "label.txt"
    text = labels.read_text() + "# event/none.jpg\n# event/small.jpg\n4 4 1 9\n"
    labels.write_text(text)
    source = wider_source(tree, "train")  # neither file exists, nor need it
    assert len(source.photos) == 7
    labels.write_text("# event/small.jpg\n4 4 1 9\n")
    with pytest.raises(DataError, match="no photo with a face"):
        wider_source(tree, "train")


@pytest.mark.parametrize("folder", ["images", BLURRED])
def test_missing_photos_are_counted_and_named(tree: Path, folder: str) -> None:
    for number in (2, 4):
        (tree / "train" / folder / f"event/{number}.jpg").unlink()
    with pytest.raises(DataError) as caught:
        blurred_source(tree)
    message = str(caught.value)
    assert message.startswith(f"{tree / 'train' / folder}: 2 of 7 photos")
    assert "event/2.jpg" in message
    assert "gaussblur.py" in message
    assert "\n" not in message


def test_a_blurred_copy_of_another_size_is_refused(tree: Path) -> None:
    Image.new("RGB", (30, 30)).save(tree / "train" / BLURRED / "event" / "3.jpg")
    samples = generator_samples(blurred_source(tree))
    with pytest.raises(DataError, match=r"event/3\.jpg: the blurred copy's size"):
        samples[(0, 0, 3)]


def test_validation_takes_the_official_labels_where_present(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    tree = make_tree(tmp_path, split="val", photos=2)
    source = validation_source(tree)
    assert [photo.path for photo in source.photos] == ["event/0.jpg", "event/1.jpg"]
    assert source.images_dir == tree / "val" / "images"
    assert not any(photo.invalid.any() for photo in source.photos)
    split = tree / "wider_face_split"
    split.mkdir()
    row = "1 2 30 40 0 0 0 1 0 0"
    (split / "wider_face_val_bbx_gt.txt").write_text(f"event/1.jpg\n1\n{row}\n")
    (photo,) = validation_source(tree).photos
    assert photo.path == "event/1.jpg"
    assert photo.invalid.tolist() == [True]
