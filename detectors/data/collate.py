"""Making a batch of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vfmdistill.errors import InputError


def collate(samples: Sequence[tuple[Tensor, dict[str, Any]]]) -> tuple[Tensor, list[dict[str, Any]]]:
    """Stack N images of one size to (N, 3, H, W) float32 and list their targets.

    Raises:
        InputError: images of different sizes, or not float32.
    """
    images, targets = zip(*samples, strict=True)
    expected = images[0].shape
    for image, target in zip(images, targets, strict=True):
        if image.shape != expected or image.dtype != torch.float32:
            raise InputError(
                f"image {int(target['image_id'])} is {tuple(image.shape)} {image.dtype} in a batch of "
                f"{tuple(expected)} torch.float32; let the transform bring all images to one size and to float32."
            )
    return torch.stack([image.as_subclass(Tensor) for image in images]), list(targets)
