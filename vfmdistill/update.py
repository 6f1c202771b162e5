"""Modulator: what decides λ, and Update: what one update did."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from vfmdistill.errors import WeightsError

Reason = Literal[
    "unchanged",  # the share lies in the window, or λ is too small to be scaled
    "no_gradient",  # the tap got no gradient: λ is the default
    "final_phase",  # after finish_adapting(): λ is the default
    "raised",
    "lowered",
    "calibrating",  # ρ is still being measured: λ is held
    "calibrated",  # ρ has just been set: λ is held for the last time
    "no_observation",  # no finite share since the last update: λ is held
    "by_teacher",  # each teacher has a λ of its own: see `Update.teachers`
]


class Update(NamedTuple):
    """What one update did.

    Attributes:
        previous: λ before.
        weight: λ from here on.
        share: the mean share since the last update in percent, None where there was none.
        reason: why λ moved or stayed.
        teachers: where each teacher has a λ of its own, what it did to each by name; λ above is then the mean by the
            teachers' shares of the loss, and the share that of all together.
    """

    previous: float
    weight: float
    share: float | None
    reason: Reason
    teachers: Mapping[str, Update] = MappingProxyType({})


class Modulator(Protocol):
    """What a distiller asks of the thing that decides λ. Nobody inherits from it."""

    weight: float

    def observe(self, share: Tensor | float) -> None:
        """Take the share of one step in percent."""
        ...

    def update(self) -> Update:
        """Set the weight by the shares since the last update."""
        ...

    def finish_adapting(self) -> None:
        """Use the default weight from the next update on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON-able values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from."""
        ...


def check_state(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise a WeightsError unless a modulator's state is of the kind, and has the keys, of its `own`."""
    if state.get("kind") != own["kind"] or state.keys() != own.keys():
        raise WeightsError(
            f"the state of a {state.get('kind')!r} modulator with {sorted(state)}; expected one of a {own['kind']!r} "
            f"with {sorted(own)}. Attach with the modulator that the state was saved from."
        )
