"""StudentAdapter: what the library must know about a kind of student. Nobody inherits from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@dataclass(frozen=True)
class Tap:
    """A student module whose output is aligned with the teacher.

    Attributes:
        path: the module's dotted path in the student, "" for the student itself.
        module: the module.
    """

    path: str
    module: nn.Module


@runtime_checkable
class StudentAdapter(Protocol):
    """Where to tap a kind of student, and how to read what comes out of the tap."""

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        """Return the modules to align, at least one."""
        ...

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        """Return the map (N, C, h, w) in the output of a tap, height before width, its gradient kept.

        Args:
            tap: the tap that gave the output.
            output: whatever the tapped module returned.
            images: (N, 3, H, W), the batch that the student saw.

        Raises:
            CaptureError: the output holds no such map.
        """
        ...


@runtime_checkable
class ForegroundAdapter(Protocol):
    """A `StudentAdapter` that also says how much each cell of a map counts.

    An adapter sees the images only; one that weighs by boxes is given them before `Distiller.loss`, for example as an
    attribute that the training loop sets with every batch.
    """

    def foreground(self, tap: Tap, feature_map: Tensor, images: Tensor) -> Tensor | None:
        """Return weights (N, h, w), 0 or above, for the cells of a tap's map, or None where all count alike.

        Args:
            tap: the tap that gave the map.
            feature_map: (N, C, h, w), what `feature_map` read.
            images: (N, 3, H, W), the batch that the student saw.
        """
        ...
