"""Identification and verification from distances between face embeddings.

P people have S photos each. `distances`, float [P, S, P, S], holds at [p, s, q, g] the distance
between photo s of person p as the probe and photo g of person q in the gallery. The same photo is
never on both sides: only pairs with s != g count, between different people too.

Intervals come from the bootstrap over people: the photos of one person are not independent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Rate(NamedTuple):
    """A rate in [0, 1] with its percentile interval."""

    value: float
    low: float
    high: float


def embedding_distances(probes: Floats, gallery: Floats) -> Floats:
    """Euclidean distances [P, S, P, S] of embeddings [P, S, D] and [P, S, D]."""
    people, photos = probes.shape[:2]
    flat_probes, flat_gallery = (
        probes.reshape(people * photos, -1),
        gallery.reshape(people * photos, -1),
    )
    distances = np.stack([np.linalg.norm(flat_gallery - probe, axis=1) for probe in flat_probes])
    return distances.reshape(people, photos, people, photos)


def rank1_scores(distances: Floats) -> Floats:
    """Share of each person's identifications at rank 1 that are right, [P].

    Each photo number g in turn is the gallery, one photo a person; the probes are all photos with
    another number. Where k people are equally near, the right one among them counts 1 / k: that is
    what a guess gives.
    """
    people, photos = distances.shape[:2]
    right = np.zeros((people, photos, photos))
    for number in range(photos):
        to_gallery = distances[:, :, :, number]  # [P, S, P]
        nearest = to_gallery == to_gallery.min(axis=2, keepdims=True)
        right[:, :, number] = np.einsum("psp->ps", nearest) / nearest.sum(axis=2)
    return right[:, ~np.eye(photos, dtype=np.bool_)].mean(axis=1)


def tar_at_far(distances: Floats, far: float) -> float:
    """True accept rate at the false accept rate `far`.

    A pair is accepted below a threshold: the largest among the distances of different people at
    which at most `far` of those pairs are accepted. With fewer than `1 / far` pairs that is none.
    """
    return _Verification(distances).tar(far, np.ones(len(distances), dtype=np.int64))


def rank1_interval(distances: Floats, seed: int, resamples: int = 1000) -> Rate:
    """Rank-1 rate with its 95 % interval; the probes' people are drawn, the gallery stays whole."""
    scores = rank1_scores(distances)
    rates = [counts @ scores / len(scores) for counts in _resampled(len(scores), seed, resamples)]
    return _with_interval(float(scores.mean()), rates)


def tar_interval(distances: Floats, far: float, seed: int, resamples: int = 1000) -> Rate:
    """`tar_at_far` with its 95 % interval, the threshold set anew in every resample.

    A person drawn k times has k times the genuine pairs; two people drawn j and k times have
    j · k times theirs. Nobody is an impostor of themselves.
    """
    verification = _Verification(distances)
    rates = [
        verification.tar(far, counts) for counts in _resampled(len(distances), seed, resamples)
    ]
    return _with_interval(tar_at_far(distances, far), rates)


class _Verification:
    """The pairs of all people, sorted once for many resamples."""

    def __init__(self, distances: Floats) -> None:
        people, photos = distances.shape[:2]
        differ = ~np.eye(photos, dtype=np.bool_)
        pairs = distances.transpose(0, 2, 1, 3)[:, :, differ]  # [P, P, S * (S - 1)]
        self.genuine = pairs[np.arange(people), np.arange(people)]
        probe, gallery = np.nonzero(~np.eye(people, dtype=np.bool_))
        impostors = pairs[probe, gallery]
        order = impostors.ravel().argsort(kind="stable")
        self.impostors = impostors.ravel()[order]
        self.probe = probe.repeat(impostors.shape[1])[order]
        self.gallery = gallery.repeat(impostors.shape[1])[order]

    def tar(self, far: float, counts: NDArray[np.int64]) -> float:
        """True accept rate where person p was drawn `counts[p]` times."""
        accepted = (counts[self.probe] * counts[self.gallery]).cumsum()
        # The tolerance keeps 0.1 % of 1,000 pairs at 1 where the product falls short of it.
        index = int(np.searchsorted(accepted, far * accepted[-1] + 1e-9, side="right"))
        threshold = self.impostors[index] if index < len(self.impostors) else np.inf
        return float(counts @ (self.genuine < threshold).mean(axis=1) / counts.sum())


def _resampled(people: int, seed: int, resamples: int) -> NDArray[np.int64]:
    """How often each person is drawn, [resamples, P]; equal for equal arguments."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(people, np.full(people, 1 / people), size=resamples)


def _with_interval(value: float, rates: list[float]) -> Rate:
    low, high = np.percentile(rates, [2.5, 97.5])
    return Rate(value, float(low), float(high))
