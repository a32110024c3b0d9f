from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from models.restoration import (
    SIDE,
    RestorationError,
    RestorationNet,
    crop_mask,
    face_crop,
    paste_crop,
    restore,
    train_restoration,
)
from utils.blur import face_mask, gaussian_blur

CPU = torch.device("cpu")
BOX = np.array([60.0, 50.0, 130.0, 150.0])


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.restoration.BATCH", 4)


def picture(seed: int, height: int = 200, width: int = 180) -> np.ndarray:
    """A smooth picture with some texture, uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (10, 9, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))


def pairs(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops of faces that were blurred and darkened amid black, clean crops, masks."""
    pictures = [picture(seed) for seed in range(count)]
    blurred = [gaussian_blur(image, BOX[None], 0.5) for image in pictures]
    hidden = [
        np.where(face_mask(BOX[None], 200, 180)[..., None] > 0, image // 2, 0) for image in blurred
    ]
    return (
        np.stack([face_crop(image, BOX) for image in hidden]),
        np.stack([face_crop(image, BOX) for image in pictures]),
        np.stack([crop_mask(image, BOX) for image in pictures]),
    )


def error(crops: np.ndarray, clean: np.ndarray, masks: np.ndarray) -> float:
    return float(np.abs(crops.astype(float) - clean)[masks > 0].mean())


def test_a_crop_holds_the_box_with_a_fifth_more() -> None:
    # 100 px are the longer side of the box: 120 px of the photo go into 128.
    image = np.zeros((200, 180, 3), dtype=np.uint8)
    image[50:150, 60:130] = 200
    crop, mask = face_crop(image, BOX), crop_mask(image, BOX)
    assert crop.shape == (SIDE, SIDE, 3)
    rows, columns = np.nonzero(crop[..., 0] > 100)
    height, width = 100 * SIDE / 120, 70 * SIDE / 120
    assert rows.max() - rows.min() + 1 == pytest.approx(height, abs=1)
    assert columns.max() - columns.min() + 1 == pytest.approx(width, abs=1)
    assert rows.min() + rows.max() == pytest.approx(SIDE - 1, abs=1)
    assert columns.min() + columns.max() == pytest.approx(SIDE - 1, abs=1)
    np.testing.assert_array_equal(mask, crop[..., 0] > 100)


def test_a_crop_at_scale_one_is_cut_to_the_pixel() -> None:
    image = picture(0)
    half = SIDE / 1.2 / 2
    box = np.array([90 - 20, 100 - half, 90 + 20, 100 + half])
    np.testing.assert_array_equal(face_crop(image, box), image[36:164, 26:154])


@pytest.mark.parametrize("box", [BOX, np.array([-20.5, 90.2, 60.0, 210.0])])
def test_a_crop_pasted_back_brings_the_box_and_nothing_else(box: np.ndarray) -> None:
    image, other = picture(0), picture(1)
    pasted = paste_crop(other, box, face_crop(image, box))
    mask = face_mask(box[None], 200, 180) > 0
    np.testing.assert_array_equal(pasted[~mask], other[~mask])
    # Resampled twice, so a little softer, but in its place: a shift of one pixel would cost 3.
    difference = np.abs(pasted.astype(float) - image)
    assert difference[mask].mean() < 1
    np.testing.assert_array_equal(other, picture(1))


def test_an_untrained_network_changes_nothing() -> None:
    hidden, _, masks = pairs(3)
    np.testing.assert_array_equal(restore(RestorationNet().eval(), hidden, masks), hidden)


def test_training_undoes_a_fixed_blur_also_on_pictures_it_never_saw() -> None:
    hidden, clean, masks = pairs(40)
    network, losses = train_restoration(hidden[:32], clean[:32], masks[:32], 40, 0, CPU)
    assert len(losses) == 40
    assert losses[0] == pytest.approx(error(hidden[:32], clean[:32], masks[:32]), rel=0.2)
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    restored = restore(network, hidden[32:], masks[32:])
    assert restored.shape == (8, SIDE, SIDE, 3)
    assert restored.dtype == np.uint8
    before = error(hidden[32:], clean[32:], masks[32:])
    assert error(restored, clean[32:], masks[32:]) < 0.5 * before
    np.testing.assert_array_equal(restored[masks[32:] == 0], hidden[32:][masks[32:] == 0])


def test_the_same_seed_trains_the_same_network() -> None:
    data = pairs(4)
    weights = []
    for seed in (0, 0, 1):
        torch.rand(1)  # what happened before does not matter
        state = torch.get_rng_state()
        weights.append(train_restoration(*data, 3, seed, CPU)[0].out.weight.detach())
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_restoring_in_batches_is_restoring_one_by_one() -> None:
    hidden, clean, masks = pairs(6)
    network, _ = train_restoration(hidden, clean, masks, 3, 0, CPU)
    alone = np.concatenate([restore(network, hidden[i : i + 1], masks[i : i + 1]) for i in (0, 5)])
    together = restore(network, hidden, masks)[[0, 5]]
    assert np.abs(alone.astype(int) - together).max() <= 1


def test_a_loss_that_is_no_number_stops_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.restoration.LEARNING_RATE", float("inf"))
    with pytest.raises(RestorationError, match="step 2"):
        train_restoration(*pairs(2), 4, 0, CPU)
