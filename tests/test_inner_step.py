from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.inner_step import adam_step

DOUBLE = torch.float64
TOLERANCES = [(DOUBLE, 1e-14), (torch.float32, 1.2e-7)]  # about one unit in the last place


def network(dtype: torch.dtype = DOUBLE) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.PReLU(3), nn.Conv2d(3, 1, 2)).to(dtype)


def optimizer_of(module: nn.Sequential) -> torch.optim.Adam:
    """Two groups with numbers of their own."""
    groups = [
        {"params": list(module[0].parameters()), "lr": 0.03, "betas": (0.5, 0.999)},
        {"params": [*module[1].parameters(), *module[2].parameters()], "lr": 0.002, "eps": 1e-5},
    ]
    return torch.optim.Adam(groups)


def gradients_of(module: nn.Module, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        # Scales from one part in a million to a million: Adam divides them away.
        name: torch.randn(p.shape, generator=generator, dtype=DOUBLE).to(p.dtype) * 10.0 ** (i - 3)
        for i, (name, p) in enumerate(module.named_parameters())
    }


def take_step(module: nn.Module, optimizer: torch.optim.Adam, gradients: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    optimizer.step()
    optimizer.zero_grad()


def warm(module: nn.Sequential, optimizer: torch.optim.Adam, steps: int) -> None:
    """Take some steps, with the groups' learning rates changed on the way."""
    for step in range(steps):
        take_step(module, optimizer, gradients_of(module, seed=100 + step))
        for group in optimizer.param_groups:
            group["lr"] *= 0.8


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("steps", [0, 1, 7])
def test_equals_the_step_that_adam_takes(steps: int, dtype: torch.dtype, tolerance: float) -> None:
    module = network(dtype)
    optimizer = optimizer_of(module)
    warm(module, optimizer, steps)
    before = copy.deepcopy((module.state_dict(), optimizer.state_dict()))
    gradients = gradients_of(module, seed=1)
    stepped = adam_step(module, gradients, optimizer)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[0][name])
    assert str(optimizer.state_dict()) == str(before[1])

    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    take_step(module, optimizer, gradients)
    assert set(stepped) == set(start)
    for name, parameter in module.named_parameters():
        assert (parameter - start[name]).abs().max() > 1e-6
        torch.testing.assert_close(stepped[name], parameter, rtol=tolerance, atol=tolerance / 5)


@pytest.mark.parametrize("steps", [1, 5])
def test_gradient_through_the_step(steps: int) -> None:
    module = network()
    optimizer = optimizer_of(module)
    for step in range(steps):
        take_step(module, optimizer, {k: v.sign() for k, v in gradients_of(module, step).items()})

    def weight_after(gradient: Tensor) -> Tensor:
        return adam_step(module, {"0.weight": gradient}, optimizer)["0.weight"]

    gradient = torch.randn(3, 2, 3, 3, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(weight_after, (gradient,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_parameters_with_counts_of_their_own(layout: torch.memory_format) -> None:
    """Values are stepped together, yet each as far as its own count says, and in its place."""
    module = network().to(memory_format=layout)
    optimizer = optimizer_of(module)
    first, *_, last = dict(module.named_parameters())
    for step in range(4):  # all, then all but one, then all but two, then none of the two
        gradients = gradients_of(module, seed=20 + step)
        for name in [first, last][:step]:
            del gradients[name]
        take_step(module, optimizer, gradients)
    counts = [float(optimizer.state[p]["step"]) for p in module.parameters()]
    assert (counts[0], counts[-1], set(counts[1:-1])) == (1, 2, {4})
    gradients = {
        name: value.to(memory_format=layout) if value.ndim == 4 else value
        for name, value in gradients_of(module, seed=1).items()
    }
    stepped = adam_step(module, gradients, optimizer)
    take_step(module, optimizer, gradients)
    for name, parameter in module.named_parameters():
        assert stepped[name].shape == parameter.shape
        torch.testing.assert_close(stepped[name], parameter, rtol=1e-14, atol=2e-15)


def test_parameters_without_a_gradient_come_back_as_they_are() -> None:
    module = network()
    optimizer = torch.optim.Adam(module[0].parameters(), lr=0.1)
    gradients = {k: v for k, v in gradients_of(module, 2).items() if k.startswith("0.")}
    stepped = adam_step(module, gradients, optimizer)
    for name, parameter in module.named_parameters():
        assert (stepped[name] is parameter) == (not name.startswith("0."))


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("zeros", ["first step", "after steps with zero", "one zero among others"])
def test_zero_gradients_stay_finite(zeros: str, dtype: torch.dtype, tolerance: float) -> None:
    module = network(dtype)
    optimizer = optimizer_of(module)
    gradients = gradients_of(module, 3)
    if zeros == "after steps with zero":
        for _ in range(3):
            take_step(module, optimizer, {k: torch.zeros_like(v) for k, v in gradients.items()})
    if zeros == "one zero among others":
        for value in gradients.values():
            value.view(-1)[0] = 0.0
    else:
        gradients = {name: torch.zeros_like(value) for name, value in gradients.items()}
    inputs = {name: value.requires_grad_() for name, value in gradients.items()}
    stepped = adam_step(module, inputs, optimizer)
    loss = torch.stack([(value**2).sum() for value in stepped.values()]).sum()
    slopes = torch.autograd.grad(loss, list(inputs.values()))
    assert all(torch.isfinite(value).all() for value in stepped.values())
    assert all(torch.isfinite(slope).all() for slope in slopes)
    # The value is still Adam's: a parameter whose gradient was always 0 does not move.
    take_step(module, optimizer, {name: value.detach() for name, value in inputs.items()})
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(stepped[name], parameter, rtol=tolerance, atol=tolerance / 5)


@pytest.mark.parametrize(
    "option", [{"weight_decay": 0.01}, {"amsgrad": True}, {"maximize": True}], ids=str
)
def test_other_kinds_of_adam_are_refused(option: dict[str, float]) -> None:
    module = network()
    optimizer = torch.optim.Adam(module.parameters(), **option)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plain Adam"):
        adam_step(module, gradients_of(module, 0), optimizer)
