from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.batches import generator_samples, plan_tensors, same
from utils.face_dataset import (
    Batch,
    DataError,
    DetectorSamples,
    GeneratorBatch,
    GeneratorSamples,
    Sample,
    Source,
    labelled_source,
    run_loader,
    validation_source,
    wider_source,
)
from utils.sampling import BatchOrder, Pass
from utils.tiles import frame_masks, plan_batch

BLURRED = "images_G2_M80"


@pytest.fixture
def tree(make_tree: Callable[..., Path], tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree", photos=7)


def blurred_source(tree: Path) -> Source:
    return wider_source(tree, "train", blurred=tree / "train" / BLURRED)


def epoch_batches(
    samples: GeneratorSamples, batch_size: int, first: int = 0, epoch: int = 4, workers: int = 0
) -> list[GeneratorBatch]:
    """The batches of one epoch from `first` on."""
    count = len(samples)
    passes = [Pass("generator", epoch, 1, count // batch_size)]
    order = BatchOrder(passes, count, batch_size, samples.seed, first)
    return list(run_loader(samples, order, workers, pin_memory=False))


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
    whole = epoch_batches(samples, 2)
    assert len(whole) == 3  # the seventh photo makes no batch
    rest = epoch_batches(samples, 2, first=1)
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(whole[1:], rest, strict=True))
    (worked,) = epoch_batches(samples, 2, first=2, workers=1)  # in a process of its own
    assert same(worked, whole[2])
    other = epoch_batches(samples, 2, epoch=5)
    assert [b.names for b in other] != [b.names for b in whole]


def test_an_epoch_shows_every_photo_once(tree: Path) -> None:
    samples = generator_samples(blurred_source(tree))
    names = [name for batch in epoch_batches(samples, 1) for name in batch.names]
    assert sorted(names) == sorted(photo.path for photo in samples.source.photos)


FACES = np.array([[1.0, 2, 5, 6], [2, 2, 7, 7]])


def samples_of(versions: int) -> list[Sample]:
    """Three images of 8 x 8 px, the second without a face, each in so many versions."""
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    faces = {"a": FACES[:1], "b": np.zeros((0, 4)), "c": FACES}
    return [
        ([image + versions * number + version for version in range(versions)], boxes, name)
        for number, (name, boxes) in enumerate(faces.items())
    ]


def test_batches_drop_images_without_faces() -> None:
    source = Source([], Path())
    generator, detector = generator_samples(source, frame=8), DetectorSamples(source, 0, 8, (1, 1))
    batch, single = generator.collate(samples_of(2)), detector.collate(samples_of(1))
    assert isinstance(batch, GeneratorBatch)
    assert type(single) is Batch
    for one in (batch, single):
        assert one.names == ["a", "c"]
        assert one.images.shape == (2, 3, 8, 8)
        assert one.images.dtype == torch.uint8
        assert one.boxes.dtype == torch.float32
        assert one.present.tolist() == [[True, False], [True, True]]
        assert one.boxes[one.present].tolist() == [FACES[0].tolist(), *FACES.tolist()]
    assert batch.images[:, 0, 0, 0].tolist() == [0, 4]
    assert batch.blurred[:, 0, 0, 0].tolist() == [1, 5]
    assert single.images[:, 0, 0, 0].tolist() == [0, 2]
    assert generator.collate(samples_of(2)[1:2]) is None
    assert detector.collate(samples_of(1)[1:2]) is None


def test_mask_and_plan_are_those_of_the_boxes(tree: Path) -> None:
    samples = generator_samples(blurred_source(tree), frame=96)
    chosen = [samples[(0, 3, index)] for index in range(7)]
    chosen.insert(2, (chosen[2][0], np.zeros((0, 4)), "without a face"))
    batch = samples.collate(chosen)
    assert batch is not None
    faces = [boxes for _, boxes, name in chosen if len(boxes)]
    assert [len(boxes) for boxes in faces] == batch.present.sum(dim=1).tolist()
    assert same(batch.mask, frame_masks(faces, 96, 96))
    assert same(batch.plan, plan_batch(faces, 96, 96, face_size=32, context=4))
    assert {group.level for group in batch.plan.groups} == {0, 1}
    # The boxes themselves have fractions: what they touch at all is covered, and pasted back.
    for mask, boxes in zip(batch.mask, faces, strict=True):
        covered = np.zeros((96, 96), dtype=np.uint8)
        for x1, y1, x2, y2 in boxes:
            rows = slice(max(int(np.floor(y1)), 0), int(np.ceil(y2)))
            covered[rows, max(int(np.floor(x1)), 0) : int(np.ceil(x2))] = 1
        np.testing.assert_array_equal(mask[0], covered)
    pasted = torch.cat([group.target for group in batch.plan.groups])
    assert torch.equal(pasted.sort().values, batch.mask.flatten().nonzero()[:, 0])


def test_moving_a_batch_keeps_everything(tree: Path) -> None:
    samples = generator_samples(blurred_source(tree))
    (batch,) = epoch_batches(samples, 7)
    moved = batch.to(torch.device("cpu"))
    assert moved is not batch
    assert same(moved, batch)
    detector = DetectorSamples(samples.source, 3, 64, (0.5, 1.0))
    single = detector.collate([detector[(0, 0, 1)]])
    assert single is not None
    assert same(single.to(torch.device("cpu")), single)


def test_moving_a_batch_leaves_nothing_behind(tree: Path) -> None:
    """To the device without memory: what stayed on the CPU would make the GPU wait for it."""
    (batch,) = epoch_batches(generator_samples(blurred_source(tree)), 7)
    meta = torch.device("meta")
    moved = batch.to(meta)
    tensors = {name: part for name, part in vars(moved).items() if isinstance(part, Tensor)}
    assert tensors.keys() == {"images", "boxes", "present", "blurred", "mask"}
    assert len(plan_tensors(moved.plan)) == 5 * len(batch.plan.groups) > 0
    for part in [*tensors.values(), *plan_tensors(moved.plan)]:
        assert part.device == meta
    assert moved.names == batch.names


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
