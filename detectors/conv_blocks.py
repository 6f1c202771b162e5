"""Convolution blocks of the hybrid encoder. Activations are passed as classes, for example `nn.SiLU`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Activation = type[nn.Module]


class ConvNorm(nn.Module):
    """Convolution without bias that keeps the size at stride 1, batch norm, and an activation if one is given."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: Activation = nn.Identity,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class RepBlock(nn.Module):
    """Sum of a 3 × 3 and a 1 × 1 convolution with norms; all of it can be folded into one convolution (RepVGG)."""

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        self.conv3x3 = ConvNorm(channels, channels, 3)
        self.conv1x1 = ConvNorm(channels, channels, 1)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.conv3x3(x) + self.conv1x1(x))
        return out


class CSPBlock(nn.Module):
    """Cross-stage block of RT-DETR: a chain of `RepBlock`s beside a 1 × 1 shortcut, summed."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_blocks: int, expansion: float = 1.0, activation: Activation
    ) -> None:
        super().__init__()
        width = int(out_channels * expansion)
        self.main = ConvNorm(in_channels, width, activation=activation)
        self.shortcut = ConvNorm(in_channels, width, activation=activation)
        self.blocks = nn.Sequential(*(RepBlock(width, activation) for _ in range(num_blocks)))
        same = width == out_channels
        self.leave = nn.Identity() if same else ConvNorm(width, out_channels, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.leave(self.blocks(self.main(x)) + self.shortcut(x))
        return out


class ELANBlock(nn.Module):
    """Aggregation block of D-FINE: both halves of a projection, and two stages on the second half, joined by 1 × 1."""

    def __init__(
        self, in_channels: int, out_channels: int, *, width: int, num_blocks: int, activation: Activation
    ) -> None:
        super().__init__()
        self.enter = ConvNorm(in_channels, in_channels, activation=activation)

        def stage(channels: int) -> nn.Sequential:
            return nn.Sequential(
                CSPBlock(channels, width, num_blocks=num_blocks, activation=activation),
                ConvNorm(width, width, 3, activation=activation),
            )

        self.first = stage(in_channels // 2)
        self.second = stage(width)
        self.join = ConvNorm(in_channels + 2 * width, out_channels, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        first = self.first(entered.chunk(2, dim=1)[1])
        out: Tensor = self.join(torch.cat([entered, first, self.second(first)], dim=1))
        return out
