"""Objectives: distances between a projected student map and a teacher map.

Each one is a pure function of two maps (N, C, h, w) of the same shape and returns a scalar that is 0 where the student
has nothing left to learn. Only gradients for the student are meant. Those that compare cell by cell take weights
(N, h, w), 0 or above, and are then the mean by weight over all cells of the batch, 0 where every weight is.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over cells and images of 1 − cos, in [0, 2]: the reference's objective (RT-DETRv4, arXiv 2510.25257)."""
    if weights is None:
        return (1 - F.cosine_similarity(student, teacher, dim=1)).mean()
    student, teacher = _counted(student, weights), _counted(teacher, weights)
    return _weighted_mean(1 - F.cosine_similarity(student, teacher, dim=1), weights)


def mse(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared difference (FitNets, arXiv 1412.6550)."""
    if weights is None:
        return F.mse_loss(student, teacher)
    student, teacher = _counted(student, weights), _counted(teacher, weights)
    return _weighted_mean(F.mse_loss(student, teacher, reduction="none").mean(dim=1), weights)


def smooth_l1(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean smooth L1 difference with its bend at 1 (Fast R-CNN, arXiv 1504.08083)."""
    if weights is None:
        return F.smooth_l1_loss(student, teacher)
    student, teacher = _counted(student, weights), _counted(teacher, weights)
    return _weighted_mean(F.smooth_l1_loss(student, teacher, reduction="none").mean(dim=1), weights)


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines between all pairs of cells of an image: their Gram matrices.

    The pair-wise distillation of arXiv 1903.04197 with every cell as a node; up to a constant factor the Gram anchoring
    of DINOv3 (arXiv 2508.10104, section 4). Takes memory for (N, h·w, h·w).
    """
    return F.mse_loss(_cell_similarities(student), _cell_similarities(teacher))


def channel_wise(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Kullback-Leibler divergence between each channel's distributions over the cells (CWD, arXiv 2011.13256).

    Mean over channels and images, times the squared temperature.
    """
    student_log = F.log_softmax(student.flatten(2) / temperature, dim=-1)
    teacher_log = F.log_softmax(teacher.flatten(2) / temperature, dim=-1)
    divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=-1)
    return divergence.mean() * temperature**2


def pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over channels of 1 − r, with r the correlation over all cells of the batch (PKD, arXiv 2207.02039).

    Equal to half the squared difference of the maps after each channel is brought to mean 0 and variance 1. The batch
    is part of the definition, so several processes with a part each do not give the value of the whole.
    """
    return (1 - F.cosine_similarity(_centred_channels(student), _centred_channels(teacher), dim=1)).mean()


OBJECTIVES: dict[str, Callable[..., Tensor]] = {
    "cosine": cosine,
    "mse": mse,
    "smooth_l1": smooth_l1,
    "relational": relational,
    "channel_wise": channel_wise,
    "pearson": pearson,
}


def _counted(feature_map: Tensor, weights: Tensor) -> Tensor:
    """Return a map with zeros in the cells of weight 0, whose values, finite or not, then reach no gradient."""
    return torch.where(weights.unsqueeze(1) > 0, feature_map, torch.zeros_like(feature_map))


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """(N, h, w) twice -> Σ wv / Σ w."""
    # Divided before the product: a gradient divided by a sum near 0 would overflow on its way back.
    normalised = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    return (values * normalised).sum()


def _cell_similarities(feature_map: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, h·w, h·w): the cosine of every cell with every other."""
    cells = F.normalize(feature_map.flatten(2), dim=1)
    return cells.transpose(1, 2) @ cells


def _centred_channels(feature_map: Tensor) -> Tensor:
    """(N, C, h, w) -> (C, N·h·w) with the mean of each channel taken off."""
    channels = feature_map.movedim(1, 0).flatten(1)
    return channels - channels.mean(dim=1, keepdim=True)
