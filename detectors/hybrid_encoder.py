"""HybridEncoder: attention inside the coarsest map, convolutions across the maps (RT-DETR, arXiv 2304.08069)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from detectors.conv_blocks import Activation, ConvNorm, CSPBlock, ELANBlock
from detectors.size_cache import SizeCache

Fusion = Literal["csp", "elan"]


def sine_positions(height: int, width: int, dim: int, temperature: float, device: torch.device) -> Tensor:
    """Return the position embedding of RT-DETR's AIFI, shape (height · width, dim), float32.

    The four quarters hold the sines and cosines of x, then those of y. Rows run through the grid column by column
    (all y of the first x come first), whereas tokens run row by row: on a square grid the embedding is transposed, on
    others it is shuffled. The published weights were trained with it this way, so for them it has to stay.
    """
    frequencies = temperature ** -torch.linspace(0, 1, dim // 4 + 1, device=device)[:-1]
    x, y = torch.meshgrid(
        torch.arange(width, dtype=torch.float32, device=device),
        torch.arange(height, dtype=torch.float32, device=device),
        indexing="ij",
    )
    angles = torch.stack([x.flatten(), y.flatten()], dim=1)[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1)


class SelfAttentionLayer(nn.Module):
    """Transformer layer with its norms behind the sums; positions are added to queries and keys only."""

    def __init__(self, dim: int, num_heads: int, feedforward: int, activation: Activation) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.feedforward = nn.Sequential(nn.Linear(dim, feedforward), activation(), nn.Linear(feedforward, dim))
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        located = tokens + positions
        attended, _ = self.attention(located, located, tokens, need_weights=False)
        tokens = self.norm1(tokens + attended)
        out: Tensor = self.norm2(tokens + self.feedforward(tokens))
        return out


class AIFI(nn.Module):
    """Attention-based intra-scale feature interaction: self-attention among the cells of one map.

    Takes and returns a map (N, dim, h, w). Its output is F5, what RT-DETRv4 aligns with the teacher.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        feedforward: int = 1024,
        num_layers: int = 1,
        activation: Activation = nn.GELU,
        temperature: float = 10000.0,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.layers = nn.ModuleList(
            SelfAttentionLayer(dim, num_heads, feedforward, activation) for _ in range(num_layers)
        )
        self._positions = SizeCache()

    def forward(self, x: Tensor) -> Tensor:
        _, dim, h, w = x.shape
        positions = self._positions.get(
            (h, w, x.device, x.dtype),
            lambda: sine_positions(h, w, dim, self.temperature, x.device).to(x.dtype),
        )
        tokens = rearrange(x, "n c h w -> n (h w) c")
        for layer in self.layers:
            tokens = layer(tokens, positions)
        return rearrange(tokens, "n (h w) c -> n c h w", h=h).contiguous()


class HybridEncoder(nn.Module):
    """AIFI on the coarsest map, then CNN-based cross-scale feature fusion: top-down and bottom-up.

    Takes the backbone's maps, fine to coarse, each half as large as the one before, and returns as many maps of the
    same sizes with `dim` channels.

    Args:
        in_channels: channels of the backbone's maps.
        dim: channels of every map inside and behind the encoder.
        fusion: "elan" as in D-FINE, DEIM and RT-DETRv4; "csp" as in RT-DETR and RT-DETRv2.
        expansion: width of the fusion blocks, relative.
        depth: number of `RepBlock`s in them, relative to 3.
        attention_activation: activation of AIFI; `activation` is that of the convolutions.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        dim: int = 256,
        num_heads: int = 8,
        feedforward: int = 1024,
        num_layers: int = 1,
        fusion: Fusion = "elan",
        expansion: float = 1.0,
        depth: float = 1.0,
        activation: Activation = nn.SiLU,
        attention_activation: Activation = nn.GELU,
    ) -> None:
        super().__init__()
        self.input_projections = nn.ModuleList(ConvNorm(channels, dim) for channels in in_channels)
        self.aifi = AIFI(
            dim, num_heads=num_heads, feedforward=feedforward, num_layers=num_layers, activation=attention_activation
        )
        num_blocks = round(3 * depth)

        def lateral() -> nn.Module:
            return ConvNorm(dim, dim, activation=nn.Identity if fusion == "elan" else activation)

        def downsample() -> nn.Module:
            if fusion == "elan":
                return nn.Sequential(ConvNorm(dim, dim), ConvNorm(dim, dim, 3, stride=2, groups=dim))
            return ConvNorm(dim, dim, 3, stride=2, activation=activation)

        def fuse() -> nn.Module:
            if fusion == "elan":
                width = round(expansion * dim // 2)
                return ELANBlock(2 * dim, dim, width=width, num_blocks=num_blocks, activation=activation)
            return CSPBlock(2 * dim, dim, num_blocks=num_blocks, expansion=expansion, activation=activation)

        steps = len(in_channels) - 1
        self.laterals = nn.ModuleList(lateral() for _ in range(steps))
        self.top_down = nn.ModuleList(fuse() for _ in range(steps))
        self.downsamples = nn.ModuleList(downsample() for _ in range(steps))
        self.bottom_up = nn.ModuleList(fuse() for _ in range(steps))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        *finer, coarsest = [project(x) for project, x in zip(self.input_projections, features, strict=True)]
        current = self.aifi(coarsest)

        waiting = []  # laterals, coarse to fine, until the way back up
        for lateral, fuse, fine in zip(self.laterals, self.top_down, reversed(finer), strict=True):
            waiting.append(lateral(current))
            current = fuse(torch.cat([F.interpolate(waiting[-1], scale_factor=2.0), fine], dim=1))

        outputs = [current]
        for downsample, fuse, coarse in zip(self.downsamples, self.bottom_up, reversed(waiting), strict=True):
            outputs.append(fuse(torch.cat([downsample(outputs[-1]), coarse], dim=1)))
        return outputs
