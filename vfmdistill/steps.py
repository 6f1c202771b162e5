"""Steps: where one optimizer step ends and the next begins, as far as a distiller can see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn


class Steps:
    """Tells whether a loss belongs to the same step as the one before.

    A step ends by `close`, and where nobody calls it, by an optimizer's step, which shows in the parameters' versions,
    or, as fused optimizers do not count those up, in gradients that are gone.

    Args:
        parameters: returns parameters of the student that every loss trains, as they are now: sharding replaces them.
    """

    def __init__(self, parameters: Callable[[], Sequence[nn.Parameter]]) -> None:
        self._parameters = parameters
        self._versions: list[int] = []
        self.open = False

    @property
    def taken(self) -> bool:
        """Whether an optimizer has used the gradients of the latest loss, or there are none."""
        parameters = self._parameters()
        versions = [parameter._version for parameter in parameters]
        return versions != self._versions or all(parameter.grad is None for parameter in parameters)

    @property
    def begins(self) -> bool:
        """Whether the next loss begins a step."""
        return not self.open or self.taken

    def enter(self) -> None:
        """Take notice of a loss."""
        self._versions = [parameter._version for parameter in self._parameters()]
        self.open = True

    def close(self) -> None:
        """Let the next loss begin a step."""
        self.open = False
