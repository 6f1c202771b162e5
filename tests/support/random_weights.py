"""Weights that no test passes by accident: every norm does something, and queries differ in score and box."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill norms, affine blocks and heads of a detector with random numbers of a sane size; return it."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    for module in model.modules():
        if getattr(module, "running_var", None) is not None:
            module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
            module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
            module.weight.copy_(uniform(module.weight, 0.5, 1.5))
            module.bias.copy_(uniform(module.bias, -0.2, 0.2))
    for name, parameter in model.named_parameters():
        if ".lab." in name:
            parameter.copy_(uniform(parameter, 0.3, 1.3))
        elif "head" in name or "perceptron" in name:
            reach = parameter.shape[-1] ** -0.5
            parameter.copy_(uniform(parameter, -reach, reach))
    return model
