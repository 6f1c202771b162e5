"""SyncBatchNorm2d: batch norm over the joined batch of all processes, where torch's own does not run."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

Model = TypeVar("Model", bound=nn.Module)


def synchronise_batch_norms(model: Model, device: torch.device) -> Model:
    """Let every batch norm of a model see the images of all processes; parameters, buffers and their names stay.

    Torch's own implementation takes over on accelerators; for the CPU it has none, there it is `SyncBatchNorm2d`. Both
    talk in the default process group.

    Args:
        model: changed in place; returned anew only if it is a batch norm itself.
        device: what it runs on.
    """
    if device.type != "cpu":
        from timm.layers import convert_sync_batchnorm  # knows that some norms of timm's are activations besides

        converted: Model = convert_sync_batchnorm(model)
        return converted
    return _converted(model)


def _converted(module: Any) -> Any:
    if isinstance(module, nn.BatchNorm2d):
        return SyncBatchNorm2d(module)
    for name, child in module.named_children():
        module.register_module(name, _converted(child))
    return module


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with mean and variance over the images of all processes, which may differ in number and size.

    The running variance is the unbiased one of the joined batch. Backward gives the gradients of the sum of all
    processes' losses; averaged over the processes, as DDP does, they are those of the losses' mean. In evaluation it is
    `nn.BatchNorm2d`. Every process has to call it, as often as the others.

    Args:
        norm: whose settings, parameters and buffers it takes over.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self._parameters.update(norm._parameters)
        self._buffers.update(norm._buffers)
        self.training = norm.training
        # What timm's norms with an activation do besides; they have no tensors.
        self.drop: nn.Module = getattr(norm, "drop", nn.Identity())
        self.act: nn.Module = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised maps, of the shape (N, C, h, w) and dtype of `x`."""
        out: Tensor = self.act(self.drop(self._joined(x) if self.training else super().forward(x)))
        return out

    def _joined(self, x: Tensor) -> Tensor:
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        size = values.new_full((1,), values.numel() / values.shape[1])
        *sums, count = _over_processes(torch.cat([values.sum((0, 2, 3)), size])).split([self.num_features, 1])
        centred = values - (sums[0] / count)[:, None, None]
        variance = _over_processes(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats:
            self._follow((sums[0] / count).detach(), (variance * count / (count - 1).clamp(min=1)).detach())
        out = centred * (variance + self.eps).rsqrt()[:, None, None]
        if self.affine:
            out = out * self.weight[:, None, None] + self.bias[:, None, None]
        return out.to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; without a momentum they are the mean over all batches."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(variance.to(self.running_var), momentum)


class _SumOverProcesses(torch.autograd.Function):
    """A sum whose every summand gets the gradients that the sum has in all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_reduced(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _over_processes(x: Tensor) -> Tensor:
    total: Tensor = _SumOverProcesses.apply(x)
    return total


def _all_reduced(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total
