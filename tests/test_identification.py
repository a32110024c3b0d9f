from __future__ import annotations

import numpy as np
import pytest

from utils.identification import (
    embedding_distances,
    rank1_interval,
    rank1_scores,
    tar_at_far,
    tar_interval,
)


def two_photos(genuine: list[float], impostor: np.ndarray) -> np.ndarray:
    """Distances [P, 2, P, 2] that are `genuine[p]` within person p and `impostor[p, q]` between.

    Photos compared with themselves have distance 0, which nothing may count.
    """
    people = len(genuine)
    distances = np.zeros((people, 2, people, 2))
    for person in range(people):
        for other in range(people):
            value = genuine[person] if person == other else impostor[person, other]
            distances[person, 0, other, 1] = distances[person, 1, other, 0] = value
    return distances


def test_distances_are_euclidean_and_keep_their_places() -> None:
    rng = np.random.default_rng(0)
    probes, gallery = rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 2, 5))
    distances = embedding_distances(probes, gallery)
    assert distances.shape == (3, 2, 3, 2)
    assert distances[2, 0, 1, 1] == pytest.approx(
        ((probes[2, 0] - gallery[1, 1]) ** 2).sum() ** 0.5
    )


def test_rank1_of_hand_computed_distances() -> None:
    # Probe photos of person 0 are nearest to person 0, those of person 1 to person 2; person 2's
    # photo 0 finds itself among the photos 1, its photo 1 finds person 0 among the photos 0.
    impostor = np.array([[0, 5, 6], [7, 0, 2], [8, 9, 0]], dtype=float)
    distances = two_photos([1, 3, 4], impostor)
    distances[2, 1, 0, 0] = 3.5
    np.testing.assert_allclose(rank1_scores(distances), [1, 0, 0.5])


def test_rank1_takes_one_gallery_photo_of_each_person_at_a_time() -> None:
    # Three photos on a line. Photo 2 of person 0 lies near person 1.
    places = np.array([[0.0, 1.0, 9.0], [10.0, 11.0, 12.0]])
    distances = embedding_distances(places[..., None], places[..., None])
    # Person 0: probes 0 and 1 against gallery photo 1 or 0: right, right; against gallery photo 2,
    # at 9 against 12: 9 and 8 against 12 and 11: right, right; probe 2 against 0 or 1: 9 against 1
    # and 8 against 2: wrong, wrong.
    # Person 1, against gallery photos 0, 1: right four times; probes 0 and 1 against gallery photo
    # 2: to itself 2 and 1, to person 0 1 and 2: wrong, right. 5 of 6.
    np.testing.assert_allclose(rank1_scores(distances), [4 / 6, 5 / 6])


def test_a_tie_counts_what_a_guess_is_worth() -> None:
    np.testing.assert_allclose(rank1_scores(np.zeros((4, 2, 4, 2))), [0.25] * 4)
    distances = two_photos([1, 1, 1], np.array([[0, 1, 2], [9, 0, 9], [0.5, 0.5, 0]]))
    np.testing.assert_allclose(rank1_scores(distances), [0.5, 1, 0])


IMPOSTOR = np.array([[0, 2, 4], [6, 0, 8], [10, 12, 0]], dtype=float)
"""Twelve pairs of different people: two each at 2, 4, 6, 8, 10 and 12."""


@pytest.mark.parametrize(
    ("far", "wanted"),
    [
        (0.001, 1 / 3),  # no false accept: what is nearer than 2
        (2 / 12, 1 / 3),  # the two at 2: what is nearer than 4
        (4 / 12, 2 / 3),  # and the two at 4: what is nearer than 6
        (0.49, 2 / 3),  # five pairs would split the two at 6
        (0.5, 1.0),
        (1.0, 1.0),
    ],
)
def test_tar_of_hand_computed_distances(far: float, wanted: float) -> None:
    assert tar_at_far(two_photos([1.5, 5, 7], IMPOSTOR), far) == pytest.approx(wanted)


def test_a_genuine_pair_at_the_threshold_is_not_accepted() -> None:
    # At FAR 2 / 12 the next impostors lie at 4: accepting 4 would accept them.
    assert tar_at_far(two_photos([4, 4, 3.9], IMPOSTOR), 2 / 12) == pytest.approx(1 / 3)


def test_no_pair_of_one_photo_with_itself_counts() -> None:
    # On the diagonal lie zeros: were they genuine pairs, half of the accepts would be true.
    distances = two_photos([20, 20, 20], IMPOSTOR)
    assert tar_at_far(distances, 0.5) == 0
    assert rank1_scores(distances).sum() == 0


def test_black_pictures_verify_nobody() -> None:
    assert tar_at_far(np.zeros((5, 3, 5, 3)), 0.01) == 0


def test_interval_of_rank1_is_the_bootstrap_over_people() -> None:
    # Half of the people are always right, half never: the share of right ones in a resample of n is
    # binomial, n = 40, p = 1 / 2, whose 2.5 % and 97.5 % quantiles are 14 and 26.
    genuine = [1.0] * 20 + [9.0] * 20
    distances = two_photos(genuine, np.full((40, 40), 5.0))
    rate = rank1_interval(distances, seed=0, resamples=4000)
    assert rate.value == 0.5
    assert rate.low == pytest.approx(14 / 40)
    assert rate.high == pytest.approx(26 / 40)


def naive_tar(distances: np.ndarray, far: float, drawn: np.ndarray) -> float:
    """True accept rate of the people drawn, pair by pair; copies of a person are no impostors."""
    genuine, impostors = [], []
    photos = distances.shape[1]
    for p in drawn:
        for q in drawn:
            for s in range(photos):
                for g in range(photos):
                    if s != g and p != q:
                        impostors.append(distances[p, s, q, g])
        genuine += [distances[p, s, p, g] for s in range(photos) for g in range(photos) if s != g]
    impostors.sort()
    threshold = impostors[int(far * len(impostors))]
    return float(np.mean([value < threshold for value in genuine]))


def test_interval_of_tar_draws_the_threshold_anew() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(12, 1, 3)) + 0.5 * rng.normal(size=(12, 3, 3))
    distances = embedding_distances(vectors, vectors)
    rate = tar_interval(distances, 0.05, seed=0, resamples=400)
    assert rate.value == pytest.approx(naive_tar(distances, 0.05, np.arange(12)))
    draws = [naive_tar(distances, 0.05, rng.integers(0, 12, 12)) for _ in range(400)]
    assert rate.low == pytest.approx(np.percentile(draws, 2.5), abs=0.08)
    assert rate.high == pytest.approx(np.percentile(draws, 97.5), abs=0.08)
    assert rate.low < rate.value < rate.high


def test_intervals_are_reproducible_and_depend_on_the_seed() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(15, 1, 3)) + rng.normal(size=(15, 3, 3))
    distances = embedding_distances(vectors, vectors)
    first, again, other = (tar_interval(distances, 0.02, seed, 60) for seed in (0, 0, 1))
    assert first == again
    assert first != other
