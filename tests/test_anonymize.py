import numpy as np
import pytest

import models.anonymize
from models.anonymize import anonymize, load_anonymizer
from models.generator import BlurGenerator
from tests.photo_folders import picture
from utils.blur import gaussian_blur
from utils.config import load_config


def test_a_face_that_was_not_hidden_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    image, boxes, config = picture(0), [[10, 20, 40, 60], [60, 20, 90, 60]], load_config()
    first_only = gaussian_blur(image, boxes[:1])
    monkeypatch.setattr(models.anonymize, "gaussian_blur", lambda *arguments: first_only)
    with pytest.raises(models.anonymize.AnonymizeError, match=r"60 20 30 40 .* left as it is"):
        anonymize(image, boxes, "gaussian", config)
    image[20:60, 60:90] = 7  # flat: there is nothing to hide
    _, hidden, flags = anonymize(image, boxes, "gaussian", config)
    assert hidden.all()
    assert flags == ["flat_box"]


@pytest.mark.parametrize("method", ["dartblur", "gaussian", "mosaic", "black"])
def test_boxes_too_small_for_the_blur_are_hidden_too(method: str) -> None:
    generator = BlurGenerator().eval().requires_grad_(False)
    image = picture(0)
    boxes = [[10, 10, 11, 30], [50, 50, 53, 53], [70, 70, 70, 90]]
    pixels, hidden, flags = anonymize(image, boxes, method, load_config(), generator)
    assert hidden.tolist() == [True, True, False]
    assert flags == ["empty_box", "tiny_box"]
    strip = image[10:30, 10:11].mean(axis=(0, 1))
    np.testing.assert_allclose(pixels[10:30, 10:11], np.broadcast_to(strip, (20, 1, 3)), atol=0.5)
    assert (pixels[50:53, 50:53] != image[50:53, 50:53]).any(axis=2).all()
    pixels[10:30, 10:11], pixels[50:53, 50:53] = image[10:30, 10:11], image[50:53, 50:53]
    np.testing.assert_array_equal(pixels, image)


def test_labelled_boxes_are_checked_before_found_ones_could_hide_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anonymizer = load_anonymizer("black", load_config())
    image = picture(0)  # 120 x 100
    found = np.array([[90.0, 20.0, 125.0, 60.0]]), np.array([0.9])  # enlarged, over the edge
    monkeypatch.setattr(models.anonymize, "find_faces", lambda *arguments: found)
    result = anonymizer(image, [[95, 30, 110, 50], [5, 5, 5, 20]], detect=True)
    assert result.boxes.tolist() == found[0].tolist()
    assert result.scores is not None
    assert result.scores.tolist() == [0.9]
    assert result.flags == ["empty_box"]
    with pytest.raises(models.anonymize.AnonymizeError, match=r"121 30 3 20 .* lies outside"):
        anonymizer(image, [[121, 30, 124, 50]], detect=True)
    with pytest.raises(ValueError, match="no detector"):
        load_anonymizer("black", load_config(), detector=None)(image, [], detect=True)
