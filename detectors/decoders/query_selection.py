"""QuerySelection: the most promising cells of all maps become the decoder's queries (two-stage DETR)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detectors.conv_blocks import Activation
from detectors.decoders.layers import MLP
from detectors.decoders.precision import at_least_float32
from detectors.size_cache import SizeCache

PRIOR = 0.01  # how probable a class is before anything was learnt
BORDER = 0.01  # anchors nearer to 0 or 1 than this, in any coordinate, are not usable
FAR = 1e4  # their logit: its sigmoid is exactly 1 with a gradient of exactly 0, as of infinity, but no NaN comes of it


def prior_bias(probability: float = PRIOR) -> float:
    """Return the bias of a classifier that starts at `probability` (RetinaNet, arXiv 1708.02002, section 4.1)."""
    return -math.log((1 - probability) / probability)


def grid_anchors(sizes: Sequence[tuple[int, int]], device: torch.device, size: float = 0.05) -> tuple[Tensor, Tensor]:
    """Return one square box per cell of every map, as logits, and whether it may be used.

    Args:
        sizes: (height, width) of each map, fine to coarse.
        device: where the tensors shall be.
        size: side of the boxes on the first map; it doubles with every further one.

    Returns:
        Logits of cxcywh, float32, finite, shape (T, 4), rows of the first map first; usability, bool, shape (T,).
        Where an anchor is not usable all its logits are `FAR`: the box (1, 1, 1, 1).
    """
    levels = []
    for level, (height, width) in enumerate(sizes):
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        centre_y, centre_x = torch.meshgrid(y, x, indexing="ij")
        side = torch.full_like(centre_x, size * 2.0**level)
        levels.append(torch.stack([centre_x, centre_y, side, side], dim=-1).flatten(0, 1))
    boxes = torch.cat(levels)
    usable = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(dim=-1)
    return boxes.logit().masked_fill(~usable[:, None], FAR), usable


class Selection(NamedTuple):
    """What `QuerySelection` returns; K is the number of queries."""

    content: Tensor
    """Features of the chosen cells, shape (N, K, dim)."""
    boxes: Tensor
    """Their boxes as logits of cxcywh, shape (N, K, 4), float32 at least."""
    logits: Tensor
    """Their class logits, shape (N, K, num_classes)."""


class QuerySelection(nn.Module):
    """Scores every cell and takes the best.

    Cells whose anchor is too near to the border are seen as zero and stand for the box (1, 1, 1, 1). They take part:
    in the published networks they are chosen where zero scores better than what was seen elsewhere.

    Args:
        dim: channels of the maps.
        num_classes: number of classes.
        activation: class of the box head's activation.
    """

    def __init__(self, dim: int, num_classes: int, activation: Activation) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.score_head = nn.Linear(dim, num_classes)
        self.box_head = MLP(dim, dim, dim, 4, activation=activation, zero_last=True)
        self._anchors = SizeCache()
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.constant_(self.score_head.bias, prior_bias())

    def forward(self, maps: Sequence[Tensor], num_queries: int) -> Selection:
        """Choose the queries.

        Args:
            maps: shape (N, dim, h, w) each, fine to coarse.
            num_queries: how many; small images may have fewer cells, then all are taken.
        """
        sizes = tuple((x.shape[2], x.shape[3]) for x in maps)
        device = maps[0].device
        anchors, usable = self._anchors.get((sizes, device), lambda: grid_anchors(sizes, device))
        tokens = torch.cat([x.flatten(2) for x in maps], dim=2).transpose(1, 2)
        features = self.norm(self.projection(tokens * usable[:, None]))
        logits = self.score_head(features)
        best = logits.amax(dim=-1)
        chosen = best.topk(min(num_queries, best.shape[1]), dim=1).indices

        content, chosen_logits = (take_rows(x, chosen) for x in (features, logits))
        boxes = at_least_float32(self.box_head(content)) + anchors[chosen]
        return Selection(content, boxes, chosen_logits)


def take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return some rows of each matrix: `x` has the shape (N, R, C), `rows` (N, K), the result (N, K, C)."""
    # take_along_dim does the same, but an exported graph then has a fixed N.
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))
