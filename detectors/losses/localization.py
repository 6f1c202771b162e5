"""Losses on edge distributions (D-FINE, arXiv 2410.13842, sections 4.1 and 4.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from detectors.decoders.distribution import boxes_to_bins


def fine_grained_localization_loss(
    corners: Tensor,
    reference_points: Tensor,
    targets: Tensor,
    quality: Tensor,
    up: Tensor | float,
    reg_scale: Tensor | float,
) -> Tensor:
    """Return the fine-grained localisation loss (FGL) of matched queries.

    An edge's target lies between two bins: the cross-entropy with each is weighted by how near the target is to it, and
    the whole by the IoU that the query's box already has.

    Args:
        corners: logits over the bins of the left, top, right and bottom edge, shape (..., 4, reg_max + 1).
        reference_points: the boxes that the edges are measured from, cxcywh, shape (..., 4).
        targets: boxes of the objects, cxcywh, shape (..., 4).
        quality: IoU of predicted and target box, shape (...,).
        up, reg_scale: as in `detectors.decoders.distribution.weighting_function`.

    Returns:
        The sum over the four edges, shape (...,).
    """
    lower, upper_weight = boxes_to_bins(reference_points.detach(), targets, corners.shape[-1] - 1, up, reg_scale)
    log_probability = corners.log_softmax(-1)
    at_lower = log_probability.gather(-1, lower.unsqueeze(-1)).squeeze(-1)
    at_upper = log_probability.gather(-1, lower.unsqueeze(-1) + 1).squeeze(-1)
    return -(at_lower * (1 - upper_weight) + at_upper * upper_weight).sum(-1) * quality.detach()


def decoupled_distillation_focal_loss(
    corners: Tensor, teacher_corners: Tensor, confidence: Tensor, *, temperature: float = 5.0
) -> Tensor:
    """Return the decoupled distillation focal loss (DDF) of each query, for `decoupled_mean`.

    Args:
        corners: logits over the bins, shape (..., 4, reg_max + 1).
        teacher_corners: those of the final decoder layer, broadcastable with `corners`; no gradient flows into them.
        confidence: weight of each query, shape (...,): the IoU of a matched one, else the teacher's highest score.
        temperature: softens both distributions; the loss is multiplied with its square.

    Returns:
        Mean over the four edges, shape (...,).
    """
    student = (corners / temperature).log_softmax(-1)
    teacher = (teacher_corners.detach() / temperature).log_softmax(-1)
    divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * divergence.mean(-1) * confidence.detach()


def decoupled_mean(
    values: Tensor, matched: Tensor, num_matched: Tensor | float, num_others: Tensor | float, share: Tensor | float
) -> Tensor:
    """Return the weighted sum of two means, over matched queries and over all others.

    Args:
        values: one value for each query, shape (..., N, Q).
        matched: True where a query is matched, same shape.
        num_matched: what the sum over matched queries is divided by, at least 1: their number, or its mean over the
            parts that a batch is computed in.
        num_others: the same for the others.
        share: weight in [0, 1] of the matched mean; the other mean has 1 − share.

    Returns:
        Shape (...,). The mean of an empty set is 0.
    """
    mean_matched = values.where(matched, 0).sum((-2, -1)) / num_matched
    mean_others = values.where(~matched, 0).sum((-2, -1)) / num_others
    return share * mean_matched + (1 - share) * mean_others


def matched_share(num_matched: Tensor, num_others: Tensor) -> Tensor:
    """Return the weight of the matched mean in `decoupled_mean`: √matched / (√matched + √others), 0 without queries."""
    roots = num_matched.sqrt(), num_others.sqrt()
    return roots[0] / (roots[0] + roots[1]).clamp(min=torch.finfo(num_matched.dtype).tiny)
