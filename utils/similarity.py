"""How near two pictures of a face are to each other, inside the face boxes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.blur import Pixels

WINDOW = 11
"""px, side of the window of SSIM."""


@dataclass(frozen=True)
class Similarity:
    """Means over the pixels inside the boxes and the three channels.

    l1: mean absolute difference, in grey levels.
    smooth_l1: the S of L_rev, d - 0.5 where the difference d reaches 1, else d² / 2.
    psnr: dB, from the mean squared difference; infinite where there is none.
    ssim: structural similarity (Wang et al., 2004), at most 1. Its windows reach over the edge of
        the boxes, where the two pictures mostly agree.
    """

    l1: float
    smooth_l1: float
    psnr: float
    ssim: float


def similarity(one: Pixels, other: Pixels, mask: NDArray[np.bool_]) -> Similarity:
    """Compare uint8 [H, W, 3] with another where `mask`, bool [H, W] and not empty, is True.

    Raises ValueError for pictures under `WINDOW` px. Needs scikit-image.
    """
    inside = one[mask].astype(np.float64)
    distance = np.abs(inside - other[mask])
    mean_square = float((distance**2).mean())
    return Similarity(
        float(distance.mean()),
        float(np.where(distance < 1, distance**2 / 2, distance - 0.5).mean()),
        10 * math.log10(255**2 / mean_square) if mean_square else math.inf,
        _masked_ssim(one, other, mask),
    )


def _masked_ssim(one: Pixels, other: Pixels, mask: NDArray[np.bool_]) -> float:
    """Mean over the masked pixels of SSIM with the paper's Gaussian window, by channel."""
    from skimage.metrics import structural_similarity  # only evaluation needs scikit-image

    # Only the boxes and what their windows reach is looked at.
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = (
        slice(max(0, int(rows[0]) - WINDOW), int(rows[-1]) + 1 + WINDOW),
        slice(max(0, int(columns[0]) - WINDOW), int(columns[-1]) + 1 + WINDOW),
    )
    _, values = structural_similarity(
        one[part],
        other[part],
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
    )
    return float(values[mask[part]].mean())
