"""The precision that a teacher runs in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor


def dtype_for(device: torch.device) -> torch.dtype:
    """Return the dtype in which a device runs a frozen network fastest without harm.

    CUDA devices multiply bfloat16 on tensor cores from compute capability 8 on, float16 from 7 on. Everything else
    keeps float32.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        if major >= 8:
            return torch.bfloat16
        if major == 7:
            return torch.float16
    return torch.float32


def destination(move: Callable[[Tensor], Tensor], device: torch.device) -> tuple[torch.device, torch.dtype | None]:
    """Return where a function that moves a module's tensors puts them, and in which dtype if it changes that.

    Args:
        move: the function, which may leave them where they are.
        device: where they are.
    """
    one, other = (move(torch.empty(0, dtype=dtype, device=device)) for dtype in (torch.float32, torch.float16))
    return one.device, one.dtype if one.dtype == other.dtype else None


def outside_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which a network on that device runs in its own dtype."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
