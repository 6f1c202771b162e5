"""Observation: whether the gradients of the losses so far have been observed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

from torch import Tensor, distributed, nn

from vfmdistill.errors import DistillError
from vfmdistill.versions import Versions


class Observation:
    """Keeps track of `loss()` and `observe()`, and notices where one is missing.

    Args:
        parameters: the injectors' parameters, whose gradients several processes have to average.
        tap_parameters: returns those of the taps, as they are now.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], tap_parameters: Callable[[], Sequence[nn.Parameter]]
    ) -> None:
        self._parameters = parameters
        self._tap_versions = Versions(tap_parameters)
        self._warned = False
        self._lost = self._observed = False  # since the last update
        self._awaits = False  # a backward went through a loss, and only this process knows its gradients
        self._versions: list[int] = []  # of the parameters at the last loss
        self._skipped = self._noted = False  # since the last observation
        self._whole: str | None = None  # a tap whose gradients were not exchanged when they were observed

    @property
    def due(self) -> bool:
        """Whether an observation has something to see: a loss that was not skipped, as far as one can tell.

        Where there are several processes another one may have had a loss, and waits for this one.
        """
        return self._noted or ((self._lost or _several_processes()) and not self._skipped)

    @property
    def missed(self) -> bool:
        """Whether losses were computed since the last update and none was observed."""
        return self._lost and not self._observed

    def note_loss(self, loss: Tensor) -> None:
        """Take notice of a loss."""
        self._lost = self._noted = True
        if loss.requires_grad and _several_processes():
            loss.register_hook(self._note_backward)

    def note_skip(self) -> None:
        """Take notice of a batch that the teachers did not look at."""
        self._skipped = True

    def done(self, left_whole: str | None = None) -> None:
        """Take notice of an observation, also of one that had nothing to see.

        Args:
            left_whole: as `sharding.left_whole` says; right for all but the last of accumulated gradients.
        """
        self._whole = left_whole
        self._observed = self._observed or self.due
        self._awaits = self._skipped = self._noted = False

    def discard(self) -> None:
        """Forget the losses since the last observation."""
        self._awaits = self._skipped = self._noted = False
        self._whole = None
        self._lost = self._lost and self._observed

    def updated(self) -> None:
        """Take notice of an update."""
        self._lost = self._observed = False

    def check(self) -> None:
        """Raise where an optimizer has seen gradients that the processes have not averaged or exchanged.

        Its step shows in the parameters' versions, or, as fused optimizers do not count those up, in gradients that
        are gone.

        Raises:
            DistillError: it has.
        """
        versions = [parameter._version for parameter in self._parameters]
        moved = versions != self._versions
        used = moved or all(parameter.grad is None for parameter in self._parameters)
        self._versions = versions
        if not used and self._tap_versions.changed:
            self._warn()
        self._tap_versions.note()
        if self._parameters and self._awaits and used:
            raise DistillError(
                "gradients were used without observe(), where the processes average those of the injectors, so the "
                "injectors now differ between processes. Call distiller.observe() after every loss.backward()."
            )
        if self._whole is not None and used:
            raise DistillError(
                f"gradients of tap {self._whole!r} were used that FSDP has not exchanged between the processes, so the "
                "student was not trained by them: the backward pass did not go through its outputs. Where there is no "
                "loss but the semantic one, add 0 * outputs.sum() to it."
            )

    def check_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Raise where a loss was computed, and there is no gradient that its share could be read from.

        Args:
            parameters: those of the taps and the injectors.

        Raises:
            DistillError: there is none.
        """
        if self._noted and parameters and all(parameter.grad is None for parameter in parameters):
            raise DistillError(
                "observe() found no gradient, neither in the tap nor in the injectors. Call it after loss.backward(), "
                "before the gradients are cleared by zero_grad(); or distiller.discard() where a loss is given up."
            )

    def _warn(self) -> None:
        if not self._warned:
            warnings.warn(
                "an optimizer moves the student and not the injectors, whose gradients pile up and blur the share. "
                "Give it distiller.parameters() too.",
                stacklevel=4,
            )
        self._warned = True

    def _note_backward(self, gradient: Tensor) -> None:
        self._awaits = True


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
