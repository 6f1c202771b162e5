"""Projectors: the small trainable heads that bring a student's map to the teacher's width.

Each one maps (N, student_dim, h, w) to (N, teacher_dim, h, w). They live outside the student and are never shipped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class LinearProjector(nn.Linear):
    """One linear layer with bias on each cell, the reference's projector (RT-DETRv4, arXiv 2510.25257)."""

    def forward(self, feature_map: Tensor) -> Tensor:
        """Project (N, in_features, h, w) to (N, out_features, h, w)."""
        return super().forward(feature_map.movedim(1, -1)).movedim(-1, 1)


class MLPProjector(nn.Module):
    """Linear, GELU, linear on each cell; the hidden layer is as wide as the teacher."""

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.hidden = LinearProjector(student_dim, teacher_dim)
        self.output = LinearProjector(teacher_dim, teacher_dim)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Project (N, student_dim, h, w) to (N, teacher_dim, h, w)."""
        projected: Tensor = self.output(F.gelu(self.hidden(feature_map)))
        return projected


class ConvProjector(nn.Conv2d):
    """One 3 × 3 convolution with bias: a cell also sees its eight neighbours."""

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__(student_dim, teacher_dim, kernel_size=3, padding=1)


PROJECTORS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": LinearProjector,
    "mlp": MLPProjector,
    "conv": ConvProjector,
}
