from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.batches import generator_samples, same
from utils.face_dataset import labelled_source, run_loader
from utils.sampling import BatchOrder, Pass, spaced

# Two epochs of one stage, a short pass in between, and another stage of the first epoch.
PASSES = [Pass("adversary", 0, 0, 5), Pass("moments", 0, 4, 2), Pass("generator", 0, 3, 5)]
PASSES += [Pass("adversary", 1, 0, 5)]
ORDER = BatchOrder(PASSES, count=23, batch_size=4, seed=7)


def starts() -> list[tuple[int, int]]:
    return [(number, batch) for number, one in enumerate(PASSES) for batch in range(one.batches)]


def test_every_pass_takes_whole_batches_of_its_own_photos() -> None:
    batches = list(ORDER)
    assert len(batches) == len(ORDER) == 17
    assert {len(batch) for batch in batches} == {4}
    first = 0
    seen = []
    for one in PASSES:
        positions = [place for batch in batches[first : first + one.batches] for place in batch]
        first += one.batches
        assert {(stage, epoch) for stage, epoch, _ in positions} == {(one.stage, one.epoch)}
        indices = [index for _, _, index in positions]
        assert len(set(indices)) == len(indices) == 4 * one.batches  # none twice
        assert set(indices) <= set(range(23))
        seen.append(indices)
    for number, indices in enumerate(seen):
        assert indices != sorted(indices)
        assert all(indices[:8] != other[:8] for other in seen[:number])


@pytest.mark.parametrize("number", range(len(PASSES)))
def test_an_order_taken_up_anywhere_goes_on_as_it_would_have(number: int) -> None:
    whole = list(ORDER)
    for batch in range(PASSES[number].batches):
        rest = replace(ORDER, passes=PASSES[number:], first_batch=batch)
        done = starts().index((number, batch))
        assert list(rest) == whole[done:]
        assert len(rest) == len(whole) - done


def test_the_order_depends_on_the_seed() -> None:
    assert list(replace(ORDER)) == list(ORDER)
    assert all(a != b for a, b in zip(ORDER, replace(ORDER, seed=8), strict=True))


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch(processes: int) -> None:
    """Their samples, taken in turns, are the batch of a single process."""
    for resumed in (ORDER, replace(ORDER, passes=PASSES[1:], first_batch=1)):
        shares = [
            list(replace(resumed, rank=rank, processes=processes)) for rank in range(processes)
        ]
        assert {len(batch) for share in shares for batch in share} == {4 // processes}
        for whole, *parts in zip(resumed, *shares, strict=True):
            assert [place for turn in zip(*parts, strict=True) for place in turn] == whole


def test_a_worker_process_loads_the_same_batches(
    make_tree: Callable[..., Path], tmp_path: Path
) -> None:
    """Across the end of a pass: the worker lives as long as the run."""
    tree = make_tree(tmp_path, photos=5, blurred=False)
    source = labelled_source(tree / "train" / "images", tree / "train" / "label.txt")
    samples = generator_samples(source)
    passes = [Pass("a", 0, 0, 2), Pass("b", 0, 1, 2)]
    order = BatchOrder(passes, len(samples), 2, samples.seed, first_batch=1)
    alone = list(run_loader(samples, order, 0, pin_memory=False))
    worked = list(run_loader(samples, order, 1, pin_memory=False))
    assert len(alone) == len(worked) == 3
    for a, b, places in zip(alone, worked, order, strict=True):
        assert same(a, b)
        assert a.names == [source.photos[index].path for _, _, index in places]
        np.testing.assert_array_equal(a.images[1].permute(1, 2, 0), samples[places[1]][0][0])


def test_spaced_takes_items_from_all_over() -> None:
    assert spaced("abcdefgh", 4) == ["a", "c", "e", "g"]
    assert spaced("abcdefgh", 4, 0.5) == ["b", "d", "f", "h"]
    assert spaced(range(10), 3) == [0, 3, 6]
    assert spaced(range(3), 5) == spaced(range(3), None) == [0, 1, 2]
    assert spaced([], 5) == []


@pytest.mark.parametrize("total", [2, 7, 100, 1582, 12880])
@pytest.mark.parametrize("count", [1, 3, 320, 6440])
def test_spaced_shares_nothing_with_its_shift(total: int, count: int) -> None:
    count = min(count, total // 2)
    both = spaced(range(total), count) + spaced(range(total), count, 0.5)
    assert len(set(both)) == 2 * count
