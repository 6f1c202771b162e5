"""What is not a number is said, never turned into one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vfmdistill.errors import DistillError


class NonFiniteError(DistillError, ArithmeticError):
    """Predictions or losses hold NaN or infinity."""


def check_finite(losses: Mapping[str, Tensor]) -> None:
    """Raise `NonFiniteError` naming every loss that is NaN or infinite.

    This reads the device once: call it where the losses are read anyway.

    Args:
        losses: scalars by name, all on one device.
    """
    if not losses:
        return
    values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
    bad = [f"{name} = {value}" for name, value in zip(losses, values, strict=True) if value - value != 0]
    if bad:
        raise NonFiniteError(
            f"{len(bad)} of {len(losses)} losses are not finite: {', '.join(bad)}. "
            "Lower the learning rate, clip gradients, or look for broken images and boxes in this batch."
        )
