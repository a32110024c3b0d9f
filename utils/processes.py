"""The processes of one training, as `torchrun` starts them; a single one without it.

Every process takes its share of each batch, and everything that would depend on the whole
batch (the number of positives, BatchNorm's statistics, the inner gradient) is agreed on, so
that the gradients are those of one process with the same batch.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class ProcessError(Exception):
    """Processes that cannot train together; the message is one clear line."""


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that `torchrun` started, and leave them at the end.

    Yields this process's device: with CUDA, each process of a machine has a GPU of its own.
    Without `torchrun`, yields `device` unchanged. Raises `ProcessError` for too few GPUs.
    """
    if "WORLD_SIZE" not in os.environ:
        yield device
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ProcessError(
                f"torchrun starts more processes than the {torch.cuda.device_count()} GPUs here; "
                f"lower --nproc_per_node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # Flags that the host decides on travel between CPUs, past the GPU's queue.
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=10))
    try:
        yield device
    finally:
        dist.destroy_process_group()


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """The number of this process; 0 is the one that writes."""
    return dist.get_rank() if process_count() > 1 else 0


def share_gradients(module: nn.Module) -> nn.Module:
    """`module`, called in such a way that backward passes average its gradients."""
    if process_count() == 1:
        return module
    with warnings.catch_warnings():
        # PyTorch 2.4 does not know the name that later versions want instead.
        warnings.simplefilter("ignore", FutureWarning)
        return DistributedDataParallel(module, broadcast_buffers=False)


class _Sum(torch.autograd.Function):
    """Sum over the processes; its derivative is the same sum, so it can be derived twice."""

    @staticmethod
    def forward(_context: Any, values: Tensor) -> Tensor:
        total = values.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of every process's `values`, equal in all of them; gradients of any order flow."""
    return values if process_count() == 1 else _Sum.apply(values)


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean of every process's `values`; see `sum_over_processes`."""
    return values if process_count() == 1 else _Sum.apply(values) / process_count()


def all_agree(flag: bool) -> bool:
    """True where every process says so. Every process must ask.

    Raises `ProcessError` where one of them has ended.
    """
    if process_count() == 1:
        return flag
    answer = torch.tensor(int(flag))
    try:
        dist.all_reduce(answer, dist.ReduceOp.MIN)
    except RuntimeError:  # between CPUs: the connection is gone
        raise ProcessError("another process has ended; its own message says why") from None
    return bool(answer)


def require_same(number: int, message: str) -> None:
    """Raise `ProcessError` with `message` unless every process gives the same `number`."""
    if process_count() == 1:
        return
    lowest_and_negated_highest = torch.tensor([number, -number])
    dist.all_reduce(lowest_and_negated_highest, dist.ReduceOp.MIN)
    lowest, negated_highest = lowest_and_negated_highest.tolist()
    if lowest != -negated_highest:
        raise ProcessError(message)
