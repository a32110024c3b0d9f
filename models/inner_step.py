"""One Adam step of the adversary that gradients flow through (objective 4, L_cycl)."""

from __future__ import annotations

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
    stepped: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if name not in gradients:
            stepped[name] = parameter
            continue
        group = options[parameter]
        if group["weight_decay"] or group["amsgrad"] or group["maximize"]:
            raise ValueError("the differentiable step covers plain Adam only")
        beta1, beta2 = group["betas"]
        state = optimizer.state.get(parameter)
        # The count as a Python number, as in torch.optim.Adam: in float32, 1 - beta2**count would
        # keep five digits.
        if state:
            first, second, count = state["exp_avg"], state["exp_avg_sq"], state["step"].item() + 1
        else:
            first = second = torch.zeros_like(parameter)
            count = 1.0
        gradient = gradients[name]
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        # The root's slope at 0 is infinite, and 0 * infinity would make the gradient NaN.
        used = second > 0
        root = torch.where(used, torch.where(used, second, 1.0).sqrt(), 0.0)
        denominator = root / (1 - beta2**count) ** 0.5 + group["eps"]
        stepped[name] = parameter - group["lr"] / (1 - beta1**count) * first / denominator
    return stepped
