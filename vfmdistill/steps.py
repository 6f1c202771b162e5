"""Steps: where one optimizer step ends and the next begins, as far as a distiller can see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from vfmdistill.versions import Versions


class Steps:
    """Tells whether a loss belongs to the same step as the one before.

    A step ends by `close`, and where nobody calls it, by an optimizer's step, which shows in the parameters' versions,
    or, as fused optimizers do not count those up, in gradients that are gone.

    Args:
        parameters: returns what every loss trains, as it is now.
    """

    def __init__(self, parameters: Callable[[], Sequence[nn.Parameter]]) -> None:
        self._versions = Versions(parameters)
        self.open = False

    @property
    def taken(self) -> bool:
        """Whether an optimizer has used the gradients of the latest loss, or there are none."""
        return self._versions.changed or all(parameter.grad is None for parameter in self._versions.parameters())

    @property
    def begins(self) -> bool:
        """Whether the next loss begins a step."""
        return not self.open or self.taken

    def enter(self) -> None:
        """Take notice of a loss."""
        self._versions.note()
        self.open = True

    def close(self) -> None:
        """Let the next loss begin a step."""
        self.open = False
