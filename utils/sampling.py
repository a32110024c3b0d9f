"""The order in which a run draws its samples: passes over the photos, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch.utils.data import Sampler

Position = tuple[int, int, int]
"""Stage, epoch and index of a sample."""

T = TypeVar("T")


@dataclass(frozen=True)
class Pass:
    """One pass over the data: `kind` says what its steps do.

    `stage` tells passes of one epoch apart, so that each draws its own random numbers.
    """

    kind: str
    epoch: int
    stage: int
    batches: int


@dataclass(frozen=True)
class BatchOrder(Sampler[list[Position]]):
    """The batches of a whole run, from `first_batch` of `passes[0]` on.

    Each pass takes `count` photos in a random order of its own, which depends on the seed,
    its stage and its epoch alone. Of each batch of `batch_size`, this process takes every
    `processes`-th sample, the first being number `rank`.
    """

    passes: Sequence[Pass]
    count: int
    batch_size: int
    seed: int
    first_batch: int = 0
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return sum(current.batches for current in self.passes) - self.first_batch

    def __iter__(self) -> Iterator[list[Position]]:
        first = self.first_batch
        for current in self.passes:
            stage, epoch = current.stage, current.epoch
            order = np.random.default_rng([self.seed, stage, epoch]).permutation(self.count)
            for batch in range(first, current.batches):
                start = batch * self.batch_size
                mine = order[start + self.rank : start + self.batch_size : self.processes]
                yield [(stage, epoch, int(index)) for index in mine]
            first = 0


def spaced(items: Sequence[T], count: int | None, shift: float = 0.0) -> list[T]:
    """`count` of the items at even distances; all where there are no more, or for None.

    `shift`: where to begin, as a share of the distance, below 1. Where `items` are twice `count` or
    more, shifts of 0 and 0.5 have none in common.
    """
    count = len(items) if count is None else min(count, len(items))
    return [items[int((index + shift) * len(items) / count)] for index in range(count)]
