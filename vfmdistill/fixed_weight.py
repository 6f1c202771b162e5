"""FixedWeight: a λ that stays, in the place of a modulator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vfmdistill.errors import InputError
from vfmdistill.mean_share import MeanShare, mean_share
from vfmdistill.update import Update, check_state


class FixedWeight:
    """A λ that stays, with the methods of `GradientModulator`; updates still report the share.

    Args:
        weight: λ, 0 or above.

    Raises:
        InputError: the weight is negative or not finite.
    """

    def __init__(self, weight: float) -> None:
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"weight={weight}; expected a finite number, 0 or above.")
        self.weight = float(weight)
        self._shares = MeanShare()

    def __repr__(self) -> str:
        """Return the call that makes it."""
        return f"{type(self).__name__}({self.weight})"

    def observe(self, share: Tensor | float) -> None:
        """Take the share of one step in percent, as `GradientModulator.observe`."""
        self._shares.add(share)

    def finish_adapting(self) -> None:
        """Do nothing: λ does not adapt."""

    def update(self) -> Update:
        """Report the mean share since the last update over all ranks. Reads the device."""
        share = mean_share(self._shares.take())
        return Update(self.weight, self.weight, share, "no_observation" if share is None else "unchanged")

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON-able values. Reads the device."""
        return {"kind": type(self).__name__, "weight": self.weight, **self._shares.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from.

        Raises:
            WeightsError: the state is not one of a FixedWeight.
        """
        check_state(state, self.state_dict())
        self.weight = state["weight"]
        self._shares.load_state_dict(state)
