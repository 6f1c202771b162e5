"""EpochClock: what an epoch costs in time and memory."""

from __future__ import annotations

import time
from typing import Any

from .environment import peak_memory


class EpochClock:
    """Runs from the first step of an epoch to the end of its evaluation.

    Args:
        epoch: number of the epoch.

    Attributes:
        steps: optimizer steps so far; whoever takes them counts them here.
    """

    def __init__(self, epoch: int) -> None:
        self.steps = 0
        self._epoch = epoch
        self._started = time.monotonic()
        self._trained: float | None = None

    def trained(self) -> None:
        """Note that the last step is done; what follows is evaluation."""
        self._trained = time.monotonic()

    def line(self, batch_size: int | None) -> dict[str, Any]:
        """Return the epoch's line of timing.jsonl, as `Monitor` describes it.

        Args:
            batch_size: images of a step; None where the speed in images is not asked for.
        """
        now = time.monotonic()
        training = (self._trained or now) - self._started
        return {
            "epoch": self._epoch,
            "seconds": now - self._started,
            "training_seconds": training,
            "images_per_second": self.steps * batch_size / training if batch_size and training > 0 else None,
            "peak_memory": None if (peak := peak_memory()) is None else peak._asdict(),
        }
