"""The variants of the training photos, as they lie on disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

import dartblur
from models.variants import VARIANTS, VariantError, VariantPhotos, fold_of, write_variants
from models.weights import GENERATOR
from tests.conftest import TreeMaker
from tests.evaluation_tree import flat_generator
from utils.blur import blend_in_ellipses, decoy_boxes, face_mask
from utils.boxes import pixel_boxes, usable
from utils.config import load_config
from utils.image_files import read_photo, write_photo
from utils.widerface import LabelledPhoto, read_labels


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory, make_tree: TreeMaker) -> Path:
    """Six photos; the first has a colour profile."""
    root = make_tree(tmp_path_factory.mktemp("variants"), 6, blurred=False)
    photo = root / "train" / "images" / "event" / "0.jpg"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_photo(photo, read_photo(photo).pixels, profile)
    return root


@pytest.fixture(scope="module")
def photos(tree: Path) -> list[LabelledPhoto]:
    return read_labels(tree / "train" / "label.txt")


@pytest.fixture(scope="module")
def written(
    tree: Path, photos: list[LabelledPhoto], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Every variant, with the generator of this repository."""
    if not GENERATOR.is_file():
        pytest.skip(f"{GENERATOR} is not here")
    folder = tmp_path_factory.mktemp("written")
    write_variants([job(name, tree, photos, folder / name) for name in VARIANTS])
    return folder


def job(
    name: str,
    tree: Path,
    photos: list[LabelledPhoto],
    output: Path,
    generators: tuple[Path, ...] = (GENERATOR,),
) -> VariantPhotos:
    images = tree / "train" / "images"
    return VariantPhotos(name, photos, images, output, load_config(), generators, "cpu")


@pytest.mark.parametrize("method", ["gaussian", "mosaic", "black", "dartblur"])
def test_files_are_those_of_dartblur_py(
    method: str, written: Path, tree: Path, tmp_path: Path
) -> None:
    """Byte for byte, with its defaults: what is measured is what users get."""
    options = [tree / "train" / "images", "--labels", tree / "train" / "label.txt"]
    options += ["--method", method, "--output", tmp_path / "out"]
    assert dartblur.main([str(option) for option in options]) == 0
    files = sorted(path for path in (tmp_path / "out").rglob("*.jpg"))
    assert len(files) == 6
    for file in files:
        other = written / method / file.relative_to(tmp_path / "out")
        assert file.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "clean"])
def test_outside_the_boxes_all_variants_are_coded_alike(
    name: str, written: Path, photos: list[LabelledPhoto]
) -> None:
    """Blocks of 8 x 8 without a hidden pixel are equal; blocks with one differ."""
    changed = 0
    for photo in photos:
        files = [written / variant / photo.path for variant in ("clean", name)]
        clean, other = (read_photo(file).pixels for file in files)
        tables = []
        for file in files:
            with Image.open(file) as image:
                tables.append((image.quantization, image.layer, image.info.get("icc_profile")))
        assert tables[0] == tables[1]
        differs = blocks((clean != other).any(axis=2))
        hidden = blocks(face_mask(photo.boxes, *clean.shape[:2]) > 0)
        if name == "gaussian-decoy":
            assert (differs & ~hidden).any()  # decoys
        else:
            assert not (differs & ~hidden).any()
        changed += int((differs & hidden).sum())
    assert changed > 50


def blocks(marked: np.ndarray) -> np.ndarray:
    """Which blocks of 8 x 8 hold a marked pixel."""
    height, width = marked.shape
    padded = np.pad(marked, ((0, -height % 8), (0, -width % 8)))
    grid = padded.reshape(-(-height // 8), 8, -(-width // 8), 8)
    return np.asarray(grid.any(axis=(1, 3)))


def test_clean_is_the_photo_and_nothing_else(
    written: Path, tree: Path, photos: list[LabelledPhoto]
) -> None:
    for photo in photos:
        original = read_photo(tree / "train" / "images" / photo.path).pixels.astype(int)
        copy = read_photo(written / "clean" / photo.path).pixels.astype(int)
        assert np.abs(copy - original).mean() < 2  # the coding


def test_decoys_come_on_top_of_the_faces(written: Path, photos: list[LabelledPhoto]) -> None:
    for photo in photos:
        plain, decoy, clean = (
            read_photo(written / name / photo.path).pixels
            for name in ("gaussian", "gaussian-decoy", "clean")
        )
        x1, y1, x2, y2 = pixel_boxes(photo.boxes[:1], *clean.shape[:2])[0]
        inside = (slice(y1 + 8, y2 - 8), slice(x1 + 8, x2 - 8))  # whole blocks of the face
        np.testing.assert_array_equal(plain[inside], decoy[inside])
        faces = face_mask(photo.boxes, *clean.shape[:2]).sum()
        beyond = (plain != decoy).any(axis=2)
        beyond[face_mask(photo.boxes, *clean.shape[:2]) > 0] = False
        assert beyond.sum() > 0.5 * faces


def test_a_generator_redraws_the_photos_it_has_not_seen(
    tree: Path, photos: list[LabelledPhoto], tmp_path: Path
) -> None:
    white = flat_generator(tmp_path / "trained_on_0.safetensors", 1)
    black = flat_generator(tmp_path / "trained_on_1.safetensors", -1)
    write_variants([job("dartblur", tree, photos, tmp_path / "out", (white, black))])
    folds = []
    for photo in photos:
        x1, y1, x2, y2 = pixel_boxes(photo.boxes[:1], 100, 120)[0]
        middle = read_photo(tmp_path / "out" / photo.path).pixels[(y1 + y2) // 2, (x1 + x2) // 2]
        folds.append(fold_of(photo.path))
        expected = 0 if folds[-1] == 0 else 255
        assert np.abs(middle.astype(int) - expected).max() < 20
    assert set(folds) == {0, 1}


def test_folds_are_halves_that_never_change() -> None:
    paths = [f"event/{number}.jpg" for number in range(1000)]
    assert 450 < sum(map(fold_of, paths)) < 550
    # The first eight bytes that sha256sum prints: ca978112ca1bbdca and 18ac3e7343f01689.
    assert [fold_of("a"), fold_of("d")] == [0, 1]


def test_what_is_there_is_not_written_again(
    tree: Path, photos: list[LabelledPhoto], tmp_path: Path
) -> None:
    variant = job("gaussian", tree, photos, tmp_path / "out")
    write_variants([variant])
    files = [tmp_path / "out" / photo.path for photo in photos]
    before = [file.read_bytes() for file in files]
    files[2].unlink()
    files[3].write_bytes(b"as it was left")
    write_variants([variant])
    assert files[3].read_bytes() == b"as it was left"
    assert [file.read_bytes() for file in files[:3]] == before[:3]


def test_decoys_of_a_photo_are_always_the_same(
    written: Path, tree: Path, photos: list[LabelledPhoto], tmp_path: Path
) -> None:
    """In whatever order photos are written: a run goes on where it was stopped."""
    write_variants([job("gaussian-decoy", tree, photos[:2:-1], tmp_path)])
    for photo in photos[3:]:
        again = (tmp_path / photo.path).read_bytes()
        assert again == (written / "gaussian-decoy" / photo.path).read_bytes()


def test_the_coding_is_the_recipe_s(
    tree: Path, photos: list[LabelledPhoto], tmp_path: Path
) -> None:
    config = load_config(overrides=["output.jpeg_quality=80", "output.jpeg_subsampling='4:2:0'"])
    for name in ("clean", "black"):
        write_variants([replace(job(name, tree, photos, tmp_path / name), config=config)])
        with Image.open(tmp_path / name / photos[0].path) as image:
            # The JPEG standard's example table begins with 16; quality 80 means 40 % of it.
            assert image.quantization[0][0] == 6
            assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]


def test_a_photo_that_cannot_be_hidden_is_named(
    tree: Path, photos: list[LabelledPhoto], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tree, tmp_path / "data"))
    (copy / "train" / "images" / photos[1].path).write_bytes(b"no picture")
    with pytest.raises(VariantError, match=r"black: .*1\.jpg: not a picture"):
        write_variants([job("black", copy, photos, tmp_path / "out")])
    outside = LabelledPhoto(
        photos[0].path, np.array([[200.0, 10, 230, 40]]), photos[0].landmarks, photos[0].invalid
    )
    with pytest.raises(VariantError, match=r"gaussian-decoy: .*0\.jpg: .*200 10 30 30.* outside"):
        write_variants([job("gaussian-decoy", tree, [outside], tmp_path / "out2")])
    assert not list((tmp_path / "out2").rglob("*.jpg"))


def test_an_ellipse_fades_from_blur_to_photo() -> None:
    """Against the formula, pixel by pixel; two boxes, one of them over the edge of the picture."""
    image = np.full((60, 80, 3), 200, dtype=np.uint8)
    hidden = np.full((60, 80, 3), 40, dtype=np.uint8)
    boxes = [[10, 10, 50, 30], [40, 20, 90, 70], [5, 50, 6, 51]]
    result = blend_in_ellipses(image, hidden, boxes, feather=0.25)
    for y in range(60):
        for x in range(80):
            weight = 0.0
            for x1, y1, x2, y2 in boxes[:2]:
                if x1 <= x < x2 and y1 <= y < y2:
                    r = (
                        ((x + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)) ** 2
                        + ((y + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)) ** 2
                    ) ** 0.5
                    t = min(1.0, max(0.0, (1 - r) / 0.25))
                    weight = max(weight, 3 * t**2 - 2 * t**3)
            assert abs(float(result[y, x, 0]) - (200 - 160 * weight)) <= 0.5 + 1e-9
    assert (result[20, 30] == 40).all()  # a centre
    assert (result[10, 10] == 200).all()  # a corner
    assert 40 < result[20, 11, 0] < 200
    assert (image == 200).all()


def test_decoys_are_as_many_and_as_large_as_the_faces_and_on_none() -> None:
    boxes = np.array([[10.5, 10, 40, 50], [100, 30, 130, 60], [-10, 80, 20, 110], [7, 7, 8, 8]])
    for seed in range(20):
        decoys = decoy_boxes(boxes, 200, 300, np.random.default_rng(seed))
        sizes = sorted((decoys[:, 2:] - decoys[:, :2]).tolist())
        assert sizes == sorted([[30.0, 40.0], [30.0, 30.0], [20.0, 30.0]])
        assert (decoys[:, :2] >= 0).all()
        assert (decoys[:, 2:] <= [300, 200]).all()
        used = np.zeros((200, 300), dtype=int)
        for x1, y1, x2, y2 in pixel_boxes(np.concatenate([boxes[usable(boxes)], decoys]), 200, 300):
            used[y1:y2, x1:x2] += 1
        assert used.max() == 1
    again = decoy_boxes(boxes, 200, 300, np.random.default_rng(19))
    np.testing.assert_array_equal(decoys, again)
    other = decoy_boxes(boxes, 200, 300, np.random.default_rng(0))
    assert (decoys != other).any()


def test_a_decoy_of_a_large_face_shrinks_until_it_fits() -> None:
    rng = np.random.default_rng(0)
    (decoy,) = decoy_boxes([[0, 0, 80, 100]], 100, 120, rng)
    assert decoy[0] >= 80
    sides = decoy[2:] - decoy[:2]
    assert 5 < sides[0] <= 40
    assert abs(sides[0] / sides[1] - 0.8) < 0.1
    assert decoy_boxes([[0, 0, 120, 100]], 100, 120, rng).shape == (0, 4)
    assert decoy_boxes([], 100, 120, rng).shape == (0, 4)
