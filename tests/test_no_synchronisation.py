"""A training step never asks a GPU for a value: every question would stall it until it answers.

Shown without a GPU. On the CPU, each operation that would need a value from the device, or bring
one to it, is refused. On PyTorch's meta device tensors have shapes and no values: there is nothing
to wait for, and a copy from or to the host shows as one between devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import nms

from models.detector_training import DetectorTraining
from models.generator import BlurGenerator
from models.generator_training import GeneratorTraining
from models.retinaface import RetinaFace
from tests.batches import generator_samples
from utils.config import load_config
from utils.face_dataset import GeneratorBatch, Source
from utils.sampling import Pass

CPU, META = torch.device("cpu"), torch.device("meta")

READS = {
    "aten::_local_scalar_dense",  # item(), float(), bool(), and so `if` and `while`
    "aten::is_nonzero",
    "aten::equal",
    "aten::allclose",
    # The shape of the result depends on values.
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave",
    "torchvision::nms",
}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class WouldWait(Exception):
    """An operation after which host or device would wait for the other."""


class NeverWait(TorchDispatchMode):
    """Refuses operations that wait; reading the tensors `on_host` is free."""

    def __init__(self, on_host: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.on_host = {tensor.data_ptr() for tensor in on_host}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in READS and not (args[0].is_cpu and args[0].data_ptr() in self.on_host):
            raise WouldWait(f"{name} reads values")
        if name == "aten::lift_fresh":
            raise WouldWait("a tensor is made of Python's numbers")
        if name in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        ):
            raise WouldWait(f"{name} by a mask reads it")
        if name in ("aten::_to_copy", "aten::copy_"):
            here = (args[1] if name == "aten::copy_" else args[0]).device
            there = args[0].device if name == "aten::copy_" else kwargs.get("device") or here
            if here != there:
                raise WouldWait(f"{name} from {here} to {there}")
        return func(*args, **kwargs)


def counts(*optimizers: torch.optim.Optimizer) -> list[Tensor]:
    """Adam's step counts: kept on the host, and read there, by design of torch.optim."""
    return [state["step"] for optimizer in optimizers for state in optimizer.state.values()]


VALUES = torch.arange(6.0)
MASK = VALUES > 2
BOXES = torch.tensor([[0.0, 0, 9, 9], [1, 1, 9, 9]])
WAITING: dict[str, Callable[[], Any]] = {
    "item": lambda: VALUES.sum().item(),
    "float": lambda: float(VALUES[0]),
    "if": lambda: 1 if MASK.any() else 0,
    "equal": lambda: torch.equal(VALUES, VALUES.clone()),
    "allclose": lambda: torch.allclose(VALUES, VALUES),
    "nonzero": lambda: VALUES.nonzero(),
    "where of one": lambda: torch.where(MASK),
    "argwhere": lambda: VALUES.argwhere(),
    "masked_select": lambda: VALUES.masked_select(MASK),
    "index by mask": lambda: VALUES[MASK],
    "index by byte mask": lambda: VALUES[MASK.byte()],
    "put by mask": lambda: VALUES.index_put((MASK,), VALUES[3:]),
    "set by mask": lambda: VALUES.clone().__setitem__(MASK, VALUES[3:]),
    "unique": lambda: VALUES.unique(),
    "unique of rows": lambda: BOXES.unique(dim=0),
    "unique_consecutive": lambda: VALUES.unique_consecutive(),
    "bincount": lambda: VALUES.long().bincount(),
    "repeat_interleave": lambda: VALUES.repeat_interleave(VALUES.long()),
    "nms": lambda: nms(BOXES, BOXES[:, 3], 0.5),
    "tensor of numbers": lambda: torch.tensor([1.0, 2.0]),
    "tensor of a number": lambda: torch.tensor(1.0),
    "new_tensor": lambda: VALUES.new_tensor((104.0, 117.0, 123.0)),
    "to the device": lambda: VALUES.to(META),
    "to the device, and to bytes": lambda: VALUES.to(META, torch.uint8),
    "copied to the device": lambda: torch.empty(6, device=META).copy_(VALUES),
}
FREE: dict[str, Callable[[], Any]] = {
    "where": lambda: torch.where(MASK, VALUES, 0.0),
    "masked_fill": lambda: VALUES.masked_fill(MASK, 1.0),
    "index": lambda: BOXES[torch.arange(2), :, None],
    "gather": lambda: VALUES.gather(0, VALUES.argsort()),
    "topk": lambda: VALUES.topk(2),
    "full": lambda: VALUES.new_full((2,), 0.3),
    "another type": lambda: VALUES.double().to(torch.uint8),
    "the same place": lambda: VALUES.clone().to(CPU).copy_(VALUES.double()),
}


@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8 is now deprecated")
@pytest.mark.parametrize("operation", WAITING.values(), ids=WAITING.keys())
def test_what_waits_is_refused(operation: Callable[[], Any]) -> None:
    operation()  # nothing else is wrong with it
    with pytest.raises(WouldWait), NeverWait():
        operation()


@pytest.mark.parametrize("operation", FREE.values(), ids=FREE.keys())
def test_what_does_not_wait_passes(operation: Callable[[], Any]) -> None:
    with NeverWait():
        operation()


@pytest.mark.parametrize(
    "read", [Tensor.cpu, Tensor.tolist, Tensor.numpy, np.asarray, Tensor.item, bool]
)
def test_the_meta_device_has_nothing_to_read(read: Callable[[Tensor], Any]) -> None:
    """What reads memory past PyTorch's dispatch is refused there by PyTorch itself."""
    with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
        read(torch.empty(1, device=META))


def test_only_the_named_tensors_may_be_read() -> None:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(network.parameters())

    def step() -> None:
        network(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    step()
    with NeverWait(counts(optimizer)):
        step()
        with pytest.raises(WouldWait):
            network.bias.sum().item()
    with pytest.raises(WouldWait), NeverWait():
        step()


def drawn_batch() -> GeneratorBatch:
    """Two frames of 64 px with three faces, one of them seen at half its scale."""
    rng = np.random.default_rng(0)
    faces = [np.array([[3.0, 4, 57.5, 60], [40, 2, 62, 21]]), np.array([[20.0, 22, 44, 49.3]])]
    samples = [
        (list(rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)), boxes, str(number))
        for number, boxes in enumerate(faces)
    ]
    batch = generator_samples(Source([], Path())).collate(samples)
    assert batch is not None
    assert {group.level for group in batch.plan.groups} == {0, 1}
    return batch


@pytest.mark.parametrize(
    ("device", "precision", "steps"),
    [
        (CPU, "float32", "warm, adversary, generator, adversary still, generator still"),
        (CPU, "bfloat16", "generator"),
        (META, "float32", "generator"),
    ],
    ids=["cpu", "bfloat16", "meta"],
)
def test_steps_of_the_generators_training(
    device: torch.device, precision: str, steps: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generator step is followed by one of the adversary, unless it is `still`."""
    if device == META:  # it knows no autocast, which does nothing in float32
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    config = load_config(overrides=[f"train_generator.precision={precision}"])
    training = GeneratorTraining(BlurGenerator(), RetinaFace(), config, device, warm_start=True)
    batch = drawn_batch().to(device)
    known: set[str] = set()
    for step in steps.split(", "):
        kind, _, still = step.partition(" ")
        current = Pass(kind, 0, 0, 1)
        if kind not in known:  # the first of a kind makes anchors, moments and counts
            training.step(current, batch)
            known.add(kind)
        optimizers = [part for name, part in vars(training).items() if name.endswith("_optimizer")]
        with NeverWait(counts(*optimizers)):
            losses = training.step(current, batch, bool(still))
        assert losses
        assert all(loss.device == device and loss.shape == () for loss in losses.values())


@pytest.mark.parametrize("device", [CPU, META], ids=str)
def test_steps_of_a_detectors_training(device: torch.device) -> None:
    training = DetectorTraining(RetinaFace(), load_config(), device, batches=4)
    batch = drawn_batch().to(device)
    current = Pass("detector", 0, 0, 4)
    training.step(current, batch)
    for still in (False, True):
        with NeverWait(counts(training.optimizer)):
            losses = training.step(current, batch, still)
        assert losses.keys() == {"loss", "lr"}
        assert all(loss.device == device for loss in losses.values())
