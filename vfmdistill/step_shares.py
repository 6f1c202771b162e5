"""StepShares: the shares of a step, which count once an optimizer has used the gradients that they were read from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill.versions import Versions

_COMPARED = 256  # values of a parameter


class StepShares:
    """Holds the shares of the latest observation until it is known to have been the last one of its step.

    Gradients may be accumulated over several backward passes, and each may be observed; only the last observation saw
    what the optimizer uses. That it was used shows in the parameters' versions or, as fused optimizers do not count
    those up, in their values, which are compared where they lie: nothing reads the device. Shares that do not count
    are NaN, which modulators leave out.

    Attributes:
        held: the shares, (teachers,), NaN or None where there are none.

    Args:
        parameters: returns what the optimizer moves in every step, as it is now. Of the first and the last with
            more than one dimension some values are compared: a bias may have no gradient.
    """

    def __init__(self, parameters: Callable[[], Sequence[nn.Parameter]]) -> None:
        self.held: Tensor | None = None
        self._versions = Versions(parameters)
        self._values = [torch.empty(0)]

    @property
    def used(self) -> Tensor:
        """Whether the gradients of the latest observation were used, 0-dim; true before the first one."""
        values = self._some()
        if self.held is None or self._versions.changed:
            return torch.ones((), dtype=torch.bool, device=values[0].device)
        # Gathered parameters have another shape than their shards, which says nothing.
        pairs = [(old, new) for old, new in zip(self._values, values, strict=False) if old.shape == new.shape]
        moved = [(old != new).any() for old, new in pairs]
        return torch.stack(moved).any() if moved else torch.ones((), dtype=torch.bool, device=values[0].device)

    def replace(self, shares: Tensor) -> Tensor | None:
        """Hold the shares of another observation, and return those before, NaN if this one belongs to their step."""
        before = self.release()
        self.held = shares
        self._versions.note()
        self._values = self._some()
        return before

    def release(self) -> Tensor | None:
        """Return the shares held if their gradients were used, else NaN, and hold the others on."""
        shares = self.held
        if shares is None or self._versions.changed:
            return self.flush()
        used = self.used
        self.held = torch.where(used, torch.nan, shares)
        return torch.where(used, shares, torch.nan)

    def flush(self) -> Tensor | None:
        """Return the shares held, used or not, and hold none."""
        shares, self.held = self.held, None
        return shares

    def withdraw(self) -> None:
        """Forget the shares held unless their gradients were used: the step is given up."""
        if self.held is not None:
            self.held = torch.where(self.used, self.held, torch.nan)

    def _some(self) -> list[Tensor]:
        """Return copies of some values of two parameters, of sharded ones such as lie here."""
        parameters = self._versions.parameters()
        weights = [parameter for parameter in parameters if parameter.ndim > 1] or list(parameters)
        ends: list[Any] = [weights[0].detach(), weights[-1].detach()] if weights else [torch.empty(0)]
        local = [end.to_local() if hasattr(end, "to_local") else end for end in ends]
        return [values.reshape(-1)[:_COMPARED].clone() for values in local]
