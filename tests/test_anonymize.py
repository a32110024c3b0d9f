import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

import utils.hiding
from models.anonymize import AnonymizeError, Anonymizer, anonymize, load_anonymizer
from models.detection import DetectionError
from models.generator import BlurGenerator
from tests.photo_folders import picture
from utils.blur import Pixels, face_mask, gaussian_blur
from utils.config import load_config
from utils.hiding import RedrawFaces, hide_faces
from utils.image_files import read_photo

SAMPLES = Path(__file__).resolve().parents[1] / "img" / "samples"


def hidden_by(
    image: Pixels, boxes: ArrayLike, method: str, anonymizer: Anonymizer | None = None
) -> tuple[Pixels, NDArray[np.bool_], list[str]]:
    """Run the steps of `hide_faces`; `anonymizer` answers where they ask for the generator."""
    steps: Generator[Any, Any, Any] = hide_faces(image, boxes, method, load_config())
    answer: Any = None
    try:
        while True:
            request = steps.send(answer)
            assert isinstance(request, RedrawFaces)
            assert anonymizer is not None
            (answer,) = anonymizer.redraw([request])
    except StopIteration as stop:
        return stop.value


def test_a_face_that_was_not_hidden_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    image, boxes = picture(0), [[10, 20, 40, 60], [60, 20, 90, 60]]
    first_only = gaussian_blur(image, boxes[:1])
    monkeypatch.setattr(utils.hiding, "gaussian_blur", lambda *arguments: first_only)
    with pytest.raises(AnonymizeError, match=r"60 20 30 40 .* left as it is"):
        hidden_by(image, boxes, "gaussian")
    image[20:60, 60:90] = 7  # flat: there is nothing to hide
    _, hidden, flags = hidden_by(image, boxes, "gaussian")
    assert hidden.all()
    assert flags == ["flat_box"]


@pytest.mark.parametrize("method", ["dartblur", "gaussian", "mosaic", "black"])
def test_boxes_too_small_for_the_blur_are_hidden_too(method: str) -> None:
    generator = BlurGenerator().eval().requires_grad_(False)
    anonymizer = Anonymizer(method, load_config(), generator)
    image = picture(0)
    boxes = [[10, 10, 11, 30], [50, 50, 53, 53], [70, 70, 70, 90]]
    pixels, hidden, flags = hidden_by(image, boxes, method, anonymizer)
    assert hidden.tolist() == [True, True, False]
    assert flags == ["empty_box", "tiny_box"]
    strip = image[10:30, 10:11].mean(axis=(0, 1))
    np.testing.assert_allclose(pixels[10:30, 10:11], np.broadcast_to(strip, (20, 1, 3)), atol=0.5)
    assert (pixels[50:53, 50:53] != image[50:53, 50:53]).any(axis=2).all()
    pixels[10:30, 10:11], pixels[50:53, 50:53] = image[10:30, 10:11], image[50:53, 50:53]
    np.testing.assert_array_equal(pixels, image)


def test_the_call_from_python() -> None:
    """With the shipped weights, on a sample; given its own finds, it does the same again."""
    image = read_photo(SAMPLES / "eileen_collins.jpg").pixels
    before = image.copy()
    hidden = anonymize(image)
    np.testing.assert_array_equal(image, before)
    found = load_anonymizer("black", load_config())(image).boxes
    inside = face_mask(found, *image.shape[:2]) > 0
    np.testing.assert_array_equal(hidden[~inside], image[~inside])
    assert (hidden[inside] != image[inside]).any(axis=1).mean() > 0.9
    np.testing.assert_array_equal(anonymize(image, found), hidden)
    assert (anonymize(image, []) == image).all()


def test_the_call_from_python_raises_rather_than_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(0)
    for other in (image[..., 0], image.astype(np.float32), image[..., :2], image.tolist()):
        with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\]"):
            anonymize(other)  # type: ignore[arg-type]
    with pytest.raises(AnonymizeError, match="outside this photo"):
        anonymize(image, [[200, 10, 240, 40]])
    for boxes in ([[1, 2, 3]], [[0, 0, float("nan"), 9]]):
        with pytest.raises(ValueError, match="boxes must"):
            anonymize(image, boxes)

    def nan(*arguments: object, **numbers: object) -> Any:
        raise DetectionError("the detector returned values that are not finite")

    monkeypatch.setattr(sys.modules["models.anonymize"], "detect_at_scales", nan)
    with pytest.raises(DetectionError):
        anonymize(image)


def test_labelled_boxes_are_checked_before_found_ones_could_hide_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anonymizer = load_anonymizer("black", load_config())
    image = picture(0)  # 120 x 100
    found = np.array([[90.0, 20.0, 125.0, 60.0]]), np.array([0.9])  # enlarged, over the edge
    monkeypatch.setattr(sys.modules["models.anonymize"], "find_faces", lambda *arguments: found)
    result = anonymizer(image, [[95, 30, 110, 50], [5, 5, 5, 20]], detect=True)
    assert result.boxes.tolist() == found[0].tolist()
    assert result.scores is not None
    assert result.scores.tolist() == [0.9]
    assert result.flags == ["empty_box"]
    with pytest.raises(AnonymizeError, match=r"121 30 3 20 .* lies outside"):
        anonymizer(image, [[121, 30, 124, 50]], detect=True)
    with pytest.raises(ValueError, match="no detector"):
        load_anonymizer("black", load_config(), detector=None)(image, [], detect=True)
