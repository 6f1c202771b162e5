"""Building blocks of the decoders: a perceptron, two ways to merge streams, one decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from detectors.conv_blocks import Activation


class MLP(nn.Module):
    """Linear layers with an activation between them.

    Args:
        widths: number of features before, between and behind the layers.
        activation: class of the activation.
        zero_last: start with a last layer that gives zero.
    """

    def __init__(self, *widths: int, activation: Activation, zero_last: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(before, behind) for before, behind in pairwise(widths))
        self.activation = activation()
        if zero_last:
            for parameter in self.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        x = first(x)
        for layer in others:
            x = layer(self.activation(x))
        return x


class Gate(nn.Module):
    """Target gating layer of D-FINE: a learnt mixture of two streams instead of their sum, normalised."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * dim, 2 * dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, kept: Tensor, new: Tensor) -> Tensor:
        share_kept, share_new = self.linear(torch.cat([kept, new], dim=-1)).sigmoid().chunk(2, dim=-1)
        out: Tensor = self.norm(share_kept * kept + share_new * new)
        return out


class AddNorm(nn.LayerNorm):
    """Sum of two streams, normalised."""

    def forward(self, kept: Tensor, new: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(kept + new)


class DecoderLayer(nn.Module):
    """Self-attention among queries, sampling of the maps, feed-forward.

    Args:
        dim: width of the queries.
        num_heads: heads of the self-attention.
        feedforward: hidden width of the feed-forward part.
        activation: class of the feed-forward part's activation.
        sampling: takes queries, boxes and `values`, see `forward`; returns what each query reads.
        merge: takes the queries and what they read; returns the normalised mixture.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        feedforward: int,
        activation: Activation,
        *,
        sampling: nn.Module,
        merge: nn.Module,
    ) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.sampling = sampling
        self.merge = merge
        self.feedforward = nn.Sequential(nn.Linear(dim, feedforward), activation(), nn.Linear(feedforward, dim))
        self.norm2 = nn.LayerNorm(dim)
        for index in (0, 2):
            nn.init.xavier_uniform_(self.feedforward.get_submodule(str(index)).get_parameter("weight"))

    def forward(
        self, queries: Tensor, positions: Tensor, boxes: Tensor, values: Sequence[Tensor], mask: Tensor | None = None
    ) -> Tensor:
        """Return the queries of the next layer.

        Args:
            queries: shape (N, Q, dim).
            positions: embedding of the boxes, added where queries look for something, same shape.
            boxes: cxcywh in [0, 1], shape (N, Q, 4).
            values: the maps in the form that `sampling` reads.
            mask: which query (row) may not see which (column), bool, shape (Q, Q).
        """
        located = queries + positions
        attended, _ = self.attention(located, located, queries, attn_mask=mask, need_weights=False)
        queries = self.norm1(queries + attended)
        queries = self.merge(queries, self.sampling(queries + positions, boxes, values))
        limit = torch.finfo(torch.float16).max  # in half precision the sum may overflow before the norm tames it
        out: Tensor = self.norm2((queries + self.feedforward(queries)).clamp(-limit, limit))
        return out
