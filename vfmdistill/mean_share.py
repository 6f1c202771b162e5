"""MeanShare: what a modulator remembers of the shares between two updates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from vfmdistill.errors import InputError


class MeanShare:
    """Sum and number of the finite shares since the last `take`, kept on the device they come from."""

    def __init__(self) -> None:
        self._totals = torch.zeros(2, dtype=torch.float64)

    def add(self, share: Tensor | float) -> None:
        """Take one share, a number or 0-dim; one that is not finite is left out."""
        if isinstance(share, Tensor):
            if share.ndim != 0:
                raise InputError(f"a share of shape {tuple(share.shape)}; expected a 0-dim tensor or a number.")
            dtype = torch.float32 if share.device.type == "mps" else torch.float64  # mps has no float64
            self._totals = self._totals.to(share.device, dtype)
            share = share.detach().to(dtype)
        else:
            share = torch.tensor(share, dtype=self._totals.dtype, device=self._totals.device)
        observation = torch.stack([share, torch.ones_like(share)])
        self._totals += torch.where(share.isfinite(), observation, torch.zeros_like(observation))

    def take(self) -> tuple[float, int]:
        """Return sum and number over all ranks, the same on each, and start anew."""
        total, count = self._totals.tolist()
        self._totals = torch.zeros_like(self._totals)
        if distributed.is_available() and distributed.is_initialized():
            # As objects, since they must also travel where the backend cannot see the device that they were kept on.
            parts: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, (total, count))
            total, count = (math.fsum(column) for column in zip(*parts, strict=True))
        return total, int(count)

    def state_dict(self) -> dict[str, float]:
        """Return sum and number of this process. Reads the device."""
        total, count = self._totals.tolist()
        return {"share_sum": total, "share_count": int(count)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from; further keys are ignored."""
        totals = [state["share_sum"], state["share_count"]]
        self._totals = torch.tensor(totals, dtype=torch.float64)
