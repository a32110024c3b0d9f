"""What each of two processes does in test_processes.py: the same work alone, then together."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import train
from models.batch_norm import share_batch_norm
from models.detector_training import DetectorTraining
from models.generator_training import GeneratorTraining
from models.inner_step import flat
from models.training_setup import build_training, generator_samples
from models.weights import load_retinaface
from tests.children import call_train
from tests.training_runs import Place, values_of
from utils.config import load_config
from utils.face_dataset import DetectorSamples, labelled_source
from utils.processes import joined, process_count, process_rank, sum_over_processes
from utils.sampling import Pass

CPU = torch.device("cpu")
Values = dict[str, Tensor]

SHARES = ([0, 1, 2], [3])
"""Samples of a batch of four, by process; photo i has 1 + i % 3 faces."""


STEPS = (("warm", False), ("adversary", True), ("moments", False), ("generator", False))
"""Of a generator's training: what for, and whether the networks stay as they are."""


def mine() -> list[int]:
    """This process's samples; all of them where it works alone."""
    return SHARES[process_rank()] if process_count() > 1 else [*SHARES[0], *SHARES[1]]


def batch_norm() -> tuple[Values, Values]:
    """Outputs and gradients of this process's images; statistics, and gradients of parameters.

    The latter are this process's part of a sum.
    """
    random = torch.Generator().manual_seed(3)
    x, first, second = (
        torch.randn(4, 3, 5, 6, generator=random, dtype=torch.float64) * 2 + 1 for _ in range(3)
    )
    norm = nn.BatchNorm2d(3).double()
    for parameter in norm.parameters():
        nn.init.normal_(parameter, 1.0, 0.3, generator=random)
    layer = share_batch_norm(nn.Sequential(norm))
    layer(x.flip(3)[mine()])  # statistics that the next pass moves on
    images = x[mine()].requires_grad_()
    output = layer(images)
    slopes = torch.autograd.grad(
        (output.tanh() * first[mine()]).sum(), [images, *layer.parameters()], create_graph=True
    )
    curvature = (slopes[0].square() * second[mine()]).sum() + sum(
        (slope.sin() * 3).sum() / process_count() for slope in map(sum_over_processes, slopes[1:])
    )
    second_slopes = torch.autograd.grad(curvature, [images, *layer.parameters()])
    own = {"output": output, "first": slopes[0], "second": second_slopes[0]}
    own["eval"] = layer.eval()(images)
    joint = dict(layer.named_buffers())
    for name, values in (("first", slopes), ("second", second_slopes)):
        joint |= {
            f"{name} {number}": sum_over_processes(value) for number, value in enumerate(values[1:])
        }
    return own, joint


def double(batch: Any) -> Any:
    return replace(batch, boxes=batch.boxes.double())


class SmallGenerator(nn.Module):
    """Stands in for the U-Net of 12 million parameters; same input and output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layers(x) + x[:, :3])


def generator(place: Place) -> Values:
    """Losses, gradients, networks and statistics of a step of each kind."""
    numbers = "frame=64 batch_size=4 placements=20 review_budget=0.1 loss_weights.post=2"
    config = load_config(overrides=[f"train_generator.{text}" for text in numbers.split()])
    source = labelled_source(
        place.data / "train" / "images",
        place.data / "train" / "label.txt",
        place.data / "train" / "images_G2_M80",
    )
    samples = generator_samples(source, 0, config)
    torch.manual_seed(5)
    critic = load_retinaface(place.critic).double()
    small: Any = SmallGenerator().double()
    training = GeneratorTraining(small, critic, config, CPU, warm_start=True)
    values: Values = {}
    for stage, (kind, still) in enumerate(STEPS):
        batch = samples.collate([samples[(stage, 0, index)] for index in mine()])
        assert batch is not None
        assert len(batch.images) == len(mine())
        losses = training.step(Pass(kind, 0, stage, 2), double(batch), still)
        for name, value in losses.items():
            # A mean of shares; the gradient's norm is of the whole already.
            values[f"step {stage} {name}"] = sum_over_processes(value.detach()) / process_count()
        for name in (name for name in vars(training) if name.endswith("_optimizer")):
            optimizer = getattr(training, name)
            for moment in ("exp_avg", "exp_avg_sq"):
                parts = [state[moment] for state in optimizer.state.values()]
                if parts:
                    values[f"step {stage} {name} {moment}"] = flat(parts)
        values |= network_values(f"step {stage} generator", training.generator)
        values |= network_values(f"step {stage} adversary", training.adversary)
    return values


def network_values(name: str, network: nn.Module) -> Values:
    values = {f"{name}, parameters": flat(network.parameters())}
    # Each for itself: values of very different size.
    buffers = {f"{name}, {key}": value for key, value in network.named_buffers()}
    return {key: value.detach().clone() for key, value in {**values, **buffers}.items()}


def detector(place: Place) -> Values:
    """Loss, gradients, network and statistics of three steps."""
    config = load_config(overrides=["train_detector.frame=64", "train_detector.batch_size=4"])
    source = labelled_source(place.data / "train" / "images", place.data / "train" / "label.txt")
    samples = DetectorSamples(source, 0, 64, (0.3, 1.0))
    training = DetectorTraining(load_retinaface(place.critic).double(), config, CPU, batches=2)
    values: Values = {}
    for step, still in enumerate((False, True, False)):
        batch = samples.collate([samples[(0, step, index)] for index in mine()])
        assert batch is not None
        losses = training.step(Pass("detector", step, 0, 2), double(batch), still)
        for name, value in losses.items():
            values[f"step {step} {name}"] = sum_over_processes(value.detach()) / process_count()
        for moment in ("exp_avg", "exp_avg_sq"):
            parts = [state[moment] for state in training.optimizer.state.values()]
            values[f"step {step} {moment}"] = flat(parts)
        values |= network_values(f"step {step}", training.detector)
    return values


def join(rank: int, port: int) -> Any:
    """Join as `torchrun` would have it."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    return joined(CPU)


def differences(got: Values, expected: Values) -> dict[str, tuple[float, float]]:
    """Of each, the largest error relative to the largest value, and that value."""
    assert got.keys() == expected.keys()
    found = {}
    for name, value in expected.items():
        assert torch.isfinite(value).all()
        largest = value.abs().max().item()
        found[name] = (got[name] - value).abs().max().item() / (largest or 1.0), largest
    return found


def compare(connection: Connection, rank: int, port: int, place: Place) -> None:
    """Send what differs between working alone and working together."""
    images, statistics = batch_norm()
    images = {name: value[SHARES[rank]] for name, value in images.items()}
    # In double precision throughout: rounding hides nothing.
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        alone = {"generator": generator(place), "detector": detector(place)}
        with join(rank, port):
            shared_images, shared_statistics = batch_norm()
            together = {"generator": generator(place), "detector": detector(place)}
    found = {name: differences(together[name], alone[name]) for name in alone}
    found["batch norm"] = differences(shared_images, images)
    found["batch norm, joint"] = differences(shared_statistics, statistics)
    connection.send(found)


def digest(state: Any) -> str:
    """A fingerprint of a training's state."""
    found = hashlib.sha256()
    for name, value in sorted(values_of(state).items()):
        found.update(name.encode())
        found.update(value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode())
    return found.hexdigest()


def runs(
    connection: Connection, rank: int, ports: Sequence[int], calls: Sequence[list[object]]
) -> None:
    """Call train.py with each list of arguments; send exit code, stderr and state of each."""
    built: list[Any] = []

    def kept(*arguments: Any) -> Any:
        built.append(build_training(*arguments))
        return built[-1]

    for port, arguments in zip(ports, calls, strict=True):
        built.clear()
        join(rank, port)  # sets the environment; train.py itself joins
        keep = mock.patch.object(train, "build_training", kept)
        with keep, contextlib.redirect_stderr(io.StringIO()) as errors:
            code = call_train(*arguments)
        state = digest(built[0].training.state()) if built else None
        connection.send((code, errors.getvalue(), state))
