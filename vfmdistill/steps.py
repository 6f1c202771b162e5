"""Steps: where one optimizer step ends and the next begins, as far as a distiller can see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vfmdistill.versions import Versions


class Steps:
    """Tells whether a loss belongs to the same step as the one before.

    A step ends by `close`, and where nobody calls it, by an optimizer's step, which shows in the parameters' versions,
    or, as fused optimizers do not count those up, in gradients that are gone after a backward pass.

    Args:
        parameters: returns what every loss trains, as it is now.
    """

    def __init__(self, parameters: Callable[[], Sequence[nn.Parameter]]) -> None:
        self._versions = Versions(parameters)
        self.open = False
        self._went_back = False  # a backward pass went through a loss of the step

    @property
    def taken(self) -> bool:
        """Whether an optimizer has used the gradients of the step's losses, or they are gone."""
        gone = self._went_back and all(parameter.grad is None for parameter in self._versions.parameters())
        return gone or self._versions.changed

    @property
    def begins(self) -> bool:
        """Whether the next loss begins a step."""
        return not self.open or self.taken

    def enter(self) -> None:
        """Take notice of a loss, before it is computed."""
        if self.begins:
            self._went_back = False
        self._versions.note()
        self.open = True

    def follow(self, loss: Tensor) -> None:
        """Take notice when a backward pass goes through a loss."""
        if loss.requires_grad:
            loss.register_hook(self._note_backward)

    def close(self) -> None:
        """Let the next loss begin a step."""
        self.open = False

    def _note_backward(self, gradient: Tensor) -> None:
        self._went_back = True
