"""DeformableAttention: each query reads a few points around its box (Deformable DETR, arXiv 2010.04159)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from detectors.decoders.precision import at_least_float32


def split_heads(maps: Sequence[Tensor], num_heads: int) -> list[Tensor]:
    """Return maps (N, C, h, w) as (N · heads, C / heads, h, w), in float32 at least: what `sample` reads."""
    return [at_least_float32(rearrange(x, "n (m c) h w -> (n m) c h w", m=num_heads)) for x in maps]


def sample(values: Sequence[Tensor], locations: Tensor, weights: Tensor, num_points: Sequence[int]) -> Tensor:
    """Read maps at points between their cells and sum what is read by weight.

    Points outside a map read zero.

    Args:
        values: for each level, shape (N · heads, c, h, w).
        locations: x and y in [0, 1], shape (N, Q, heads, P, 2), the points of the first level first.
        weights: shape (N, Q, heads, P).
        num_points: points per level; their sum is P.

    Returns:
        Shape (N, Q, heads · c).
    """
    num_heads = locations.shape[2]
    grids = rearrange(2 * locations - 1, "n q m p xy -> (n m) q p xy")
    shares = rearrange(weights, "n q m p -> (n m) 1 q p")
    parts = zip(
        values, torch.split(grids, list(num_points), dim=2), torch.split(shares, list(num_points), dim=3), strict=True
    )
    levels = [
        (F.grid_sample(value, grid, mode="bilinear", padding_mode="zeros", align_corners=False) * share).sum(-1)
        for value, grid, share in parts
    ]
    return rearrange(torch.stack(levels).sum(0), "(n m) c q -> n q (m c)", m=num_heads)


class DeformableAttention(nn.Module):
    """Attention of queries to sampled points, without projections of values or output, as in D-FINE (arXiv 2410.13842).

    Args:
        dim: width of queries and maps.
        num_heads: attention heads; each has its own points.
        num_points: points per level; levels may differ.
        reach: how far an offset of the number of points reaches, in units of the box's width and height.
    """

    point_scale: Tensor

    def __init__(self, dim: int, num_heads: int, num_points: Sequence[int], reach: float = 0.5) -> None:
        super().__init__()
        self.num_heads, self.num_points, self.reach = num_heads, tuple(num_points), reach
        total = num_heads * sum(num_points)
        self.offsets = nn.Linear(dim, 2 * total)
        self.weights = nn.Linear(dim, total)
        scale = torch.cat([torch.full((n, 1), 1 / n) for n in num_points])
        self.register_buffer("point_scale", scale, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let the heads look in evenly spread directions, the points of a level in a row, all weighing the same."""
        for parameter in (self.offsets.weight, self.weights.weight, self.weights.bias):
            nn.init.zeros_(parameter)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.cat([torch.arange(1, n + 1) for n in self.num_points])
        with torch.no_grad():
            self.offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())

    def forward(self, queries: Tensor, boxes: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Return what each query reads.

        Args:
            queries: shape (N, Q, dim).
            boxes: cxcywh in [0, 1], shape (N, Q, 4): offsets count from the centre, in units of the size.
            values: the maps as `split_heads` returns them.

        Returns:
            Shape (N, Q, dim), in the dtype of `queries`.
        """
        offsets = rearrange(self.offsets(queries), "n q (m p xy) -> n q m p xy", m=self.num_heads, xy=2)
        weights = rearrange(self.weights(queries), "n q (m p) -> n q m p", m=self.num_heads)
        centre, size = boxes[:, :, None, None].chunk(2, dim=-1)
        locations = centre + at_least_float32(offsets) * self.point_scale * size * self.reach
        weights = at_least_float32(weights).softmax(dim=-1)
        return sample(values, locations, weights, self.num_points).to(queries.dtype)


class ProjectedDeformableAttention(DeformableAttention):
    """The same with projections of values and output, as in Deformable DETR and RT-DETR; takes the maps themselves."""

    def __init__(self, dim: int, num_heads: int, num_points: Sequence[int], reach: float = 0.5) -> None:
        super().__init__(dim, num_heads, num_points, reach)
        self.value_projection = nn.Linear(dim, dim)
        self.output_projection = nn.Linear(dim, dim)
        for projection in (self.value_projection, self.output_projection):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, queries: Tensor, boxes: Tensor, values: Sequence[Tensor]) -> Tensor:
        """Return what each query reads: as above, but `values` are the maps, shape (N, dim, h, w) each."""
        # A linear layer on every cell is a 1 × 1 convolution, which spares maps the way to tokens and back.
        kernel = self.value_projection.weight[:, :, None, None]
        projected = [F.conv2d(x, kernel, self.value_projection.bias) for x in values]
        out: Tensor = self.output_projection(super().forward(queries, boxes, split_heads(projected, self.num_heads)))
        return out
