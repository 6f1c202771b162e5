"""Mixup: every image of a batch blended with its neighbour, with the objects of both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vfmdistill.errors import InputError


def mixup(images: Tensor, targets: Sequence[dict[str, Any]], ratio: float) -> tuple[Tensor, list[dict[str, Any]]]:
    """Blend every image but the first with the image before it: N + 1 images become N.

    The boxes of both keep their full weight; only the pixels are weighted. Dense O2O of DEIM
    (https://arxiv.org/abs/2412.04234, section 3.1), after mixup (https://arxiv.org/abs/1710.09412).

    Args:
        images: (N + 1, 3, H, W) floating point.
        targets: N + 1 of them, with `labels` (M,) and `boxes` (M, 4) relative to the image.
        ratio: weight of each image, in [0, 1]; that before it has the rest.

    Returns:
        N images and their targets: first the objects of the image itself, then those of that before it; everything
        but labels and boxes is the image's own.

    Raises:
        InputError: fewer than two images, another number of targets, or a ratio outside [0, 1].
    """
    if len(images) < 2 or len(targets) != len(images) or not 0 <= ratio <= 1:
        raise InputError(
            f"mixup of {len(images)} images and {len(targets)} targets with ratio {ratio}; expected two images or "
            "more, as many targets, and a ratio from 0 to 1."
        )
    mixed = images[1:] * ratio + images[:-1] * (1 - ratio)
    joined = [
        {**own, **{key: torch.cat([own[key], before[key]]) for key in ("labels", "boxes")}}
        for before, own in pairwise(targets)
    ]
    return mixed, joined
