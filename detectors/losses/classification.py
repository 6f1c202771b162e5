"""Classification losses for queries whose positives are graded by how well their box fits.

All take the same arguments: `logits` (..., Q, C); `labels` (..., Q), int64, the class of the object that a query was
matched with, or C for none; `quality` (..., Q), the IoU of the query's box with that object. They return the loss of
every logit, shape (..., Q, C). No gradient flows into `quality` or into the weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss


def varifocal_loss(
    logits: Tensor, labels: Tensor, quality: Tensor, *, alpha: float = 0.75, gamma: float = 2.0
) -> Tensor:
    """Return the varifocal loss (VFL, arXiv 2008.13367).

    A positive aims at its IoU and counts as much as its IoU; a negative aims at 0 and counts α·pᵞ.
    """
    positive = _one_hot(labels, logits)
    target = positive * quality.detach().unsqueeze(-1)
    weight = torch.where(positive, target, alpha * logits.detach().sigmoid() ** gamma)
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none")


def matchability_aware_loss(logits: Tensor, labels: Tensor, quality: Tensor, *, gamma: float = 1.5) -> Tensor:
    """Return the matchability-aware loss (MAL, of DEIM, arXiv 2412.04234).

    A positive aims at IoUᵞ and counts fully, so that a match with a poor box still teaches; a negative counts pᵞ.
    """
    positive = _one_hot(labels, logits)
    target = positive * (quality.detach() ** gamma).unsqueeze(-1)
    weight = torch.where(positive, 1.0, logits.detach().sigmoid() ** gamma)
    return F.binary_cross_entropy_with_logits(logits, target, weight=weight, reduction="none")


def focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Return the focal loss (arXiv 1708.02002). A positive aims at 1 whatever its box: `quality` is not looked at."""
    target = _one_hot(labels, logits).to(logits)
    loss: Tensor = sigmoid_focal_loss(logits, target, alpha=alpha, gamma=gamma, reduction="none")
    return loss


def _one_hot(labels: Tensor, logits: Tensor) -> Tensor:
    return labels.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
