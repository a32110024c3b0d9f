"""One Adam step of the adversary that gradients flow through (objective 4, L_cycl)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def adam_step(
    module: nn.Module, gradients: dict[str, Tensor], optimizer: torch.optim.Adam
) -> dict[str, Tensor]:
    """Parameters of `module` after the step that `optimizer` would take next.

    `gradients`: d loss / d parameter by name, with their graph, so that the result is
    differentiable with respect to whatever they depend on. Moments, step counts and
    hyper-parameters are read from `optimizer` and not changed: from fresh moments the
    step would be lr * sign(gradient), whose derivative is rounding noise. Parameters
    without a gradient come back as they are. Plain Adam only: `ValueError` for weight
    decay, amsgrad or maximize.
    """
    options = {p: group for group in optimizer.param_groups for p in group["params"]}
    stepped: dict[str, Tensor] = dict(module.named_parameters())
    together: dict[tuple[int, float], list[str]] = defaultdict(list)
    for name, parameter in stepped.items():
        if name in gradients:
            state = optimizer.state.get(parameter)
            # The count is kept on the CPU, and a Python number as in torch.optim.Adam: in
            # float32, 1 - beta2**count would keep five digits.
            count = float(state["step"]) if state else 0.0
            together[(id(options[parameter]), count)].append(name)
    for (_, count), names in together.items():
        parameters = [stepped[name] for name in names]
        group = options[parameters[0]]
        if group["weight_decay"] or group["amsgrad"] or group["maximize"]:
            raise ValueError("the differentiable step covers plain Adam only")
        # One long vector: a step per parameter would be thousands of small operations.
        values = flat(parameters)
        gradient = flat([gradients[name] for name in names])
        first = second = torch.zeros_like(gradient)
        if count:
            states = [optimizer.state[parameter] for parameter in parameters]
            first = flat([state["exp_avg"] for state in states])
            second = flat([state["exp_avg_sq"] for state in states])
        beta1, beta2 = group["betas"]
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        # The root's slope at 0 is infinite, and 0 * infinity would make the gradient NaN.
        used = second > 0
        root = torch.where(used, torch.where(used, second, 1.0).sqrt(), 0.0)
        denominator = root / (1 - beta2 ** (count + 1)) ** 0.5 + group["eps"]
        values = values - group["lr"] / (1 - beta1 ** (count + 1)) * first / denominator
        parts = values.split([parameter.numel() for parameter in parameters])
        for name, parameter, part in zip(names, parameters, parts, strict=True):
            stepped[name] = part.view_as(parameter)
    return stepped


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All values of `tensors` in one vector, with their graph."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
