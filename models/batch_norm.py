"""BatchNorm over the images of all processes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.processes import process_count, sum_over_processes


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are those of every process's images together.

    `nn.SyncBatchNorm` serves GPUs only, and its backward pass cannot be differentiated, which
    the second-order objective needs. In eval mode, and in a single process, this is
    `nn.BatchNorm2d` itself.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x`, [B, C, H, W]; B may differ between processes."""
        if not self.training or process_count() == 1:
            return super().forward(x)
        axes = (0, 2, 3)
        sums = torch.cat([x.sum(axes), x.new_full((1,), x.numel() / x.shape[1])])
        totals = sum_over_processes(sums)
        count = totals[-1].detach()
        mean = totals[:-1] / count
        centred = x - mean[:, None, None]
        # From centred values: the mean of squares less the square of the mean loses digits.
        variance = sum_over_processes(centred.square().sum(axes)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias[:, None, None], centred, scale[:, None, None])


def share_batch_norm(module: nn.Module) -> nn.Module:
    """Put `SharedBatchNorm2d` in the place of every `nn.BatchNorm2d` inside `module`.

    Parameters and buffers stay the same tensors. Returns `module`.
    """
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
            shared._parameters, shared._buffers = child._parameters, child._buffers
            shared.train(child.training)
            setattr(module, name, shared)
        else:
            share_batch_norm(child)
    return module
