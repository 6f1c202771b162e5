"""Bringing images and maps to a size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring images or maps (N, C, H, W) to a size: untouched, averaged over whole blocks, or antialiased bilinear.

    Interpolation is computed in float32 at least; the result has the dtype of the images.
    """
    (height, width), (new_height, new_width) = images.shape[-2:], size
    if (height, width) == (new_height, new_width):
        return images
    if height % new_height == 0 and width % new_width == 0:
        return F.avg_pool2d(images, (height // new_height, width // new_width))
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    return F.interpolate(precise, size=(new_height, new_width), mode="bilinear", antialias=True).to(images.dtype)
