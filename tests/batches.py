"""Training batches of drawn photos, and how to compare them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from utils.face_dataset import GeneratorSamples, Source
from utils.tiles import TilePlan


def generator_samples(source: Source, seed: int = 3, frame: int = 64) -> GeneratorSamples:
    """The recipe's samples, in small frames; faces above 32 px are seen at reduced scale."""
    return GeneratorSamples(source, seed, frame, (0.7, 1.3), (0.95, 1.05), 1, 0.5, 80, 32, 4)


def same(a: Any, b: Any) -> bool:
    """Tell whether two batches, plans, lists or tensors are of one type, shape and value."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if hasattr(a, "__dataclass_fields__"):
        return vars(a).keys() == vars(b).keys() and all(
            same(v, vars(b)[k]) for k, v in vars(a).items()
        )
    return a == b


def plan_tensors(plan: TilePlan) -> list[Tensor]:
    return [
        part for group in plan.groups for part in vars(group).values() if isinstance(part, Tensor)
    ]
