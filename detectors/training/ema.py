"""WeightAverage: an exponential moving average of a model's weights, which is what gets evaluated and shipped."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .schedule import ema_decay
from .sharding import local_state


class WeightAverage:
    """Keep a second model whose floating-point weights and buffers follow the trained one's.

    Args:
        model: the trained model, not wrapped for parallel training.
        decay: decay after warm-up, for example 0.9999.
        warmup: time constant of the warm-up in updates (see `schedule.ema_decay`).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, warmup: int = 1000) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.warmup = warmup
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards `model`; counters and other integer buffers are copied.

        Where weights are in shards, each process moves its own: both models must be split alike.
        """
        self.updates += 1
        step = 1 - ema_decay(self.updates, decay=self.decay, warmup=self.warmup)
        average, current = local_state(self.model), local_state(model)
        moving: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for key, value in average.items():
            if value.is_floating_point():
                pair = moving.setdefault(value.dtype, ([], []))
                pair[0].append(value)
                pair[1].append(current[key].detach())
            else:
                value.copy_(current[key])
        for averaged, latest in moving.values():
            torch._foreach_lerp_(averaged, latest, step)

    def state(self) -> dict[str, float]:
        """Return what there is besides the weights."""
        return {"decay": self.decay, "updates": self.updates}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self.decay, self.updates = state["decay"], state["updates"]
