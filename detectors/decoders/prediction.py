"""What decoders are given and what one of their layers says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Targets = Sequence[Mapping[str, Tensor]]
"""For each image `labels` (M,), int64, and `boxes` (M, 4), cxcywh in [0, 1]; M may be 0."""

Prediction = dict[str, Tensor]
"""`pred_logits` (N, Q, num_classes) and `pred_boxes` (N, Q, 4), cxcywh; with edge distributions also `pred_corners`
(N, Q, 4 · (reg_max + 1)) and `ref_points` (N, Q, 4), from which the edges are measured."""


def split_queries(prediction: Prediction, sizes: Sequence[int]) -> list[Prediction]:
    """Return the prediction of each run of queries, here the denoising ones and the others."""
    parts = zip(*(torch.split(tensor, list(sizes), dim=1) for tensor in prediction.values()), strict=True)
    return [dict(zip(prediction, part, strict=True)) for part in parts]
