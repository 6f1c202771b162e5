"""The one rule about precision: boxes are computed in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision tensors as float32, all others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
