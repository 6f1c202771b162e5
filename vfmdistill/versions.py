"""Versions: the versions of parameters, in which an optimizer's step shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn


class Versions:
    """Tells whether parameters were written to since they were noted. Fused optimizers do so without leaving a mark.

    Args:
        parameters: returns them as they are now: sharding and gathering put others in their place, which are not
            compared.
    """

    def __init__(self, parameters: Callable[[], Sequence[nn.Parameter]]) -> None:
        self.parameters = parameters
        self._noted: list[tuple[nn.Parameter, int]] = []

    def note(self) -> None:
        """Remember the versions."""
        self._noted = [(parameter, parameter._version) for parameter in self.parameters()]

    @property
    def changed(self) -> bool:
        """Whether a parameter that was noted and is still there has another version."""
        there = {id(parameter) for parameter in self.parameters()}
        return any(id(parameter) in there and parameter._version != version for parameter, version in self._noted)
