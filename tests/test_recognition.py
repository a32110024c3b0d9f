from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.anonymize import find_faces
from models.recognition import SAME_PERSON, FaceRecogniser, RecognitionError, load_recogniser
from models.weights import DETECTOR, load_retinaface
from utils.blur import black
from utils.config import load_config
from utils.image_files import read_photo
from utils.lfw import read_people

SAMPLES = Path(__file__).resolve().parents[1] / "img" / "samples"

needs_dlib = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("dlib", "face_recognition_models")),
    reason="dlib-bin or face_recognition_models is not installed (requirements-eval.txt)",
)


@pytest.fixture(scope="module")
def recogniser() -> FaceRecogniser:
    return load_recogniser()


Embed = Callable[[Path], np.ndarray]


@pytest.fixture
def embed(recogniser: FaceRecogniser) -> Embed:
    """Embedding of the face at dlib's first box."""

    def call(path: Path) -> np.ndarray:
        image = read_photo(path).pixels
        return recogniser.embed(image, recogniser.landmarks(image, recogniser.find(image)[0]))

    return call


@needs_dlib
def test_the_sample_portraits_are_two_people(embed: Embed) -> None:
    first, second = (embed(path) for path in sorted(SAMPLES.glob("*.jpg")))
    assert first.shape == (128,)
    assert np.linalg.norm(first - second) > SAME_PERSON


@needs_dlib
def test_landmarks_are_two_eyes_above_a_nose(recogniser: FaceRecogniser) -> None:
    image = read_photo(SAMPLES / "grace_hopper.jpg").pixels
    box = recogniser.find(image)[0]
    landmarks = recogniser.landmarks(image, box)
    assert landmarks.shape == (5, 2)
    assert ((landmarks > box[:2]) & (landmarks < box[2:])).all()
    assert landmarks[4, 1] > landmarks[:4, 1].max()
    assert landmarks[:4, 0].min() < landmarks[4, 0] < landmarks[:4, 0].max()


@needs_dlib
def test_the_landmarks_of_the_clean_photo_align_the_others(recogniser: FaceRecogniser) -> None:
    image = read_photo(SAMPLES / "grace_hopper.jpg").pixels
    landmarks = recogniser.landmarks(image, recogniser.find(image)[0])
    clean = recogniser.embed(image, landmarks)
    # A shift of the photo with its landmarks shifts the same face; without them, it is another.
    moved = np.roll(image, (-20, 30), axis=(0, 1))
    assert np.linalg.norm(recogniser.embed(moved, landmarks + np.array([30, -20])) - clean) < 0.05
    assert np.linalg.norm(recogniser.embed(moved, landmarks) - clean) > 0.2
    hidden = black(image, recogniser.find(image))
    assert np.linalg.norm(recogniser.embed(hidden, landmarks) - clean) > SAME_PERSON


@needs_dlib
def test_one_person_is_nearer_than_another(embed: Embed, shared: Path) -> None:
    people = list(read_people(shared / "lfw", photos=2).values())[:5]
    vectors = np.array([[embed(path) for path in paths] for paths in people])
    for index in range(len(people)):
        distances = np.linalg.norm(vectors[index, 0] - vectors[:, 1], axis=1)
        assert distances.argmin() == index


@needs_dlib
def test_which_detector_found_the_box_matters_little(
    recogniser: FaceRecogniser, shared: Path
) -> None:
    detector = load_retinaface(DETECTOR).eval()
    for paths in list(read_people(shared / "lfw").values())[:8]:
        image = read_photo(paths[0]).pixels
        theirs = recogniser.find(image)[0]
        centre = (theirs[:2] + theirs[2:]) / 2
        boxes, _ = find_faces(detector, image, load_config())
        ours = boxes[((boxes[:, :2] < centre) & (centre < boxes[:, 2:])).all(axis=1)][0]
        first, second = (
            recogniser.embed(image, recogniser.landmarks(image, box)) for box in (theirs, ours)
        )
        assert np.linalg.norm(first - second) < SAME_PERSON / 2


@pytest.mark.parametrize("package", ["dlib", "face_recognition_models"])
def test_a_missing_package_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    if package == "dlib":
        monkeypatch.setitem(sys.modules, "dlib", None)
    else:
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == package else found(name)
        )
    with pytest.raises(RecognitionError, match=r"pip install -r requirements-eval\.txt") as caught:
        load_recogniser()
    assert "\n" not in str(caught.value)


@needs_dlib
def test_a_broken_model_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "face_recognition_models"
    (broken / "models").mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('never imported')\n")
    (broken / "models" / "shape_predictor_5_face_landmarks.dat").write_bytes(b"cut short")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecognitionError, match="Unexpected version") as caught:
        load_recogniser()
    assert "\n" not in str(caught.value)
