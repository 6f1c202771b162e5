"""Boxes as four distributions over edge offsets (D-FINE, arXiv 2410.13842, section 4.1).

Each edge of a box is `reg_max + 1` bins wide. Bin n stands for the offset W(n), in units of the reference box's width
(or height) over `reg_scale`; bins lie close together around zero and far apart at the ends, so that small corrections
are expressed finely.
"""

from __future__ import annotations

import torch
from torch import Tensor

from detectors.decoders.precision import at_least_float32


def weighting_function(reg_max: int, up: Tensor | float, reg_scale: Tensor | float) -> Tensor:
    """Return the offset W(n) that each bin stands for (D-FINE, section 4.1).

    With the bound a = up · reg_scale, the inner bins run geometrically from −a to a through W(reg_max / 2) = 0; the two
    outermost bins stand at −2a and 2a.

    Args:
        reg_max: number of the last bin; even, at least 4.
        up: the largest inner offset as a fraction of the reference box's width or height, positive.
        reg_scale: curvature, positive; the larger it is, the finer are the bins around zero.

    Returns:
        Ascending offsets, shape (reg_max + 1,), on the device of `up`, in float32 or, if that is its dtype, float64.
    """
    bound = at_least_float32(torch.as_tensor(up) * reg_scale).reshape(())
    half = reg_max // 2
    steps = torch.arange(-half, half + 1, dtype=bound.dtype, device=bound.device)
    magnitude = (bound + 1) ** (steps.abs() / (half - 1)) - 1
    magnitude = torch.where(steps.abs() == half, 2 * bound, magnitude)
    return magnitude * steps.sign()


def distances_to_boxes(reference_points: Tensor, distances: Tensor, reg_scale: Tensor | float) -> Tensor:
    """Move the four edges of reference boxes outwards.

    Args:
        reference_points: boxes cxcywh, shape (..., 4).
        distances: offsets of the left, top, right and bottom edge, shape (..., 4), positive outwards, in units of
            width / reg_scale (left, right) and height / reg_scale (top, bottom).
        reg_scale: as in `weighting_function`.

    Returns:
        Boxes cxcywh, shape (..., 4).
    """
    centre, size = reference_points.chunk(2, dim=-1)
    near, far = distances.chunk(2, dim=-1)
    unit = size / reg_scale
    return torch.cat([centre + 0.5 * (far - near) * unit, size + (far + near) * unit], dim=-1)


def boxes_to_bins(
    reference_points: Tensor, boxes: Tensor, reg_max: int, up: Tensor | float, reg_scale: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Express boxes as positions between bins: the inverse of `distances_to_boxes`, in terms of W(n).

    An edge at the offset d with W(n) <= d < W(n + 1) lies between the bins n and n + 1. Offsets beyond W(0) or
    W(reg_max) are drawn to that bin.

    Args:
        reference_points: boxes cxcywh, shape (..., 4).
        boxes: boxes cxcywh, shape (..., 4).
        reg_max, up, reg_scale: as in `weighting_function`.

    Returns:
        The lower of the two bins, int64 in [0, reg_max - 1], shape (..., 4) in the order left, top, right, bottom; and
        the weight in [0, 1] of the upper bin, same shape (the lower bin's weight is one minus it).
    """
    centre, size = reference_points.chunk(2, dim=-1)
    box_centre, box_size = boxes.chunk(2, dim=-1)
    unit = (size / reg_scale).clamp(min=1e-16)
    near = (centre - (box_centre - 0.5 * box_size)) / unit
    far = (box_centre + 0.5 * box_size - centre) / unit
    distances = torch.cat([near, far], dim=-1) - 0.5 * reg_scale
    offsets = weighting_function(reg_max, up, reg_scale).to(distances)
    lower = (torch.searchsorted(offsets, distances, right=True) - 1).clamp(0, reg_max - 1)
    upper_weight = ((distances - offsets[lower]) / (offsets[lower + 1] - offsets[lower])).clamp(0, 1)
    return lower, upper_weight
