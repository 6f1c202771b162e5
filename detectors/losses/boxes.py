"""Overlap of boxes and the losses on matched boxes, element by element.

Every function broadcasts: (L, P, 4) against (1, P, 4) compares pairs, (Q, 1, 4) against (M, 4) compares all with all.
"""

from __future__ import annotations

import torch
from torch import Tensor


def iou_and_giou(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return the intersection over union and its generalised form (GIoU, arXiv 1902.09630).

    A negative width or height counts as zero. Two boxes without area have an IoU of 0.

    Args:
        boxes: cxcywh, shape (..., 4).
        others: cxcywh, shape (..., 4), broadcastable with `boxes`.

    Returns:
        IoU in [0, 1] and GIoU in [-1, 1], each of the broadcast shape without the last dimension.
    """
    near, far = _edges(boxes)
    other_near, other_far = _edges(others)
    intersection = _area((torch.minimum(far, other_far) - torch.maximum(near, other_near)).clamp(min=0))
    hull = _area(torch.maximum(far, other_far) - torch.minimum(near, other_near))
    union = _area(far - near) + _area(other_far - other_near) - intersection
    smallest = torch.finfo(union.dtype).tiny
    iou = intersection / union.clamp(min=smallest)
    return iou, iou - (hull - union) / hull.clamp(min=smallest)


def box_l1_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the absolute differences of the four coordinates, shape (...,) for boxes of shape (..., 4)."""
    return (boxes - targets).abs().sum(-1)


def giou_loss(boxes: Tensor, targets: Tensor) -> Tensor:
    """Return 1 − GIoU in [0, 2], shape (...,) for cxcywh boxes of shape (..., 4)."""
    return 1 - iou_and_giou(boxes, targets)[1]


def _edges(boxes: Tensor) -> tuple[Tensor, Tensor]:
    centre, size = boxes.chunk(2, dim=-1)
    half = 0.5 * size.clamp(min=0)
    return centre - half, centre + half


def _area(extent: Tensor) -> Tensor:
    # A product of two: the gradient of Tensor.prod reads the device to look for zeros.
    return extent[..., 0] * extent[..., 1]
