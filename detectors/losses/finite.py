"""What is not a number is said, never turned into one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vfmdistill.errors import DistillError


class NonFiniteError(DistillError, ArithmeticError):
    """Predictions or losses hold NaN or infinity."""


def check_finite(losses: Mapping[str, Tensor] | Mapping[str, float], where: str = "this batch") -> None:
    """Raise `NonFiniteError` naming every loss that is NaN or infinite.

    Tensors are read off the device, once: call it where the losses are read anyway.

    Args:
        losses: scalars by name; tensors all on one device.
        where: which step or images they are of, for the message.
    """
    tensors = [value.detach().float() for value in losses.values() if isinstance(value, Tensor)]
    values = torch.stack(tensors).tolist() if tensors else list(losses.values())
    bad = [f"{name} = {value}" for name, value in zip(losses, values, strict=True) if not math.isfinite(value)]
    if bad:
        raise NonFiniteError(
            f"{len(bad)} of {len(losses)} losses of {where} are not finite: {', '.join(bad)}. "
            "Lower the learning rate, clip gradients, or look for broken images and boxes among them."
        )
