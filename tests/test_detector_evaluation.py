from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.detection import detect
from models.detector_evaluation import predict_photos
from models.retinaface import RetinaFace
from models.weights import DETECTOR, load_retinaface
from utils.image_files import PhotoError, read_photo

SAMPLES = Path(__file__).resolve().parents[1] / "img" / "samples"
PHOTO = "grace_hopper.jpg"


@pytest.fixture(scope="module")
def detector() -> RetinaFace:
    if not DETECTOR.is_file():
        pytest.skip(f"{DETECTOR} is not here")
    return load_retinaface(DETECTOR)


def test_photos_are_searched_at_their_own_size(detector: RetinaFace) -> None:
    """In eval mode, whatever mode the detector comes in: BatchNorm must not learn from them."""
    detector.train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    boxes, scores = predict_photos(detector, SAMPLES, [PHOTO], 0.1, 0.3)[PHOTO]
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())
    expected = detect(detector.eval(), read_photo(SAMPLES / PHOTO).pixels, 0.1, 0.3)
    np.testing.assert_array_equal(boxes, expected[0])
    np.testing.assert_array_equal(scores, expected[1])
    assert scores[0] > 0.9


@pytest.mark.parametrize("longest_side", [240, 4000])
def test_boxes_of_reduced_photos_are_in_their_own_pixels(
    detector: RetinaFace, longest_side: int
) -> None:
    own = predict_photos(detector, SAMPLES, [PHOTO], 0.5)[PHOTO]
    reduced = predict_photos(detector, SAMPLES, [PHOTO], 0.5, longest_side=longest_side)[PHOTO]
    side = float((own[0][0, 2:] - own[0][0, :2]).mean())
    np.testing.assert_allclose(reduced[0][0], own[0][0], atol=0.15 * side)
    # A photo below the limit is not enlarged.
    assert np.array_equal(reduced[0], own[0]) == (longest_side == 4000)


def test_only_the_photos_asked_for_are_searched(detector: RetinaFace, tmp_path: Path) -> None:
    assert predict_photos(detector, tmp_path, []) == {}
    with pytest.raises(PhotoError, match="no such file"):
        predict_photos(detector, tmp_path, ["e/a.jpg"])
