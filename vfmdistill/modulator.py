"""GradientModulator: Gradient-guided Adaptive Modulation (GAM) of RT-DETRv4."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from vfmdistill.calibration import Calibration
from vfmdistill.errors import InputError
from vfmdistill.mean_share import MeanShare, Span, mean_share
from vfmdistill.update import Reason, Update, check_state

NO_GRADIENT = 1e-6  # percent
_SMALLEST_WEIGHT = 1e-6  # the reference leaves a λ as small as this where it is
_SMALLEST_RATIO = 0.1


class GradientModulator:
    """Moves λ so that the tap's share of the gradient stays inside [ρ − δ, ρ + δ] (arXiv 2510.25257, GAM).

    With p̄ the mean share since the last update, in percent, an update applies the first rule that fits:

    1. p̄ < 1e-6: λ becomes `default_weight`; while ρ is being measured, it stays.
    2. after `finish_adapting()`: λ becomes `default_weight`.
    3. ρ − δ ≤ p̄ ≤ ρ + δ: λ stays.
    4. else λ aims at the far bound (below the window at ρ + δ, above it at ρ − δ). With p and t, share and aim as
       fractions, λ is multiplied with t(1 − p) / (p(1 − t)), at least 0.1 and at most 10. As in the reference, a λ of
       1e-6 or less stays.

    Published settings (weight, rho, delta, default_weight): S 5, 11, 1, 20; M 5, 3.5, 0.25, 15; L 15, 2, 0.1, 15;
    X 20, 2, 0.25, 20. They belong to those detectors on COCO. For anything else `rho="auto"` holds λ for
    `calibration_updates` updates and takes the mean share of all their steps as ρ and a tenth of it as δ, the authors'
    advice for other data (github.com/RT-DETRs/RT-DETRv4/issues/17). What it saw is in `calibration` then.

    Args:
        weight: λ to begin with, above 0.
        rho: the share to keep, in percent, or "auto".
        delta: half the width of the window, in percent; None is a tenth of ρ. The window must lie within (0, 100).
        default_weight: λ where it is not adapted, above 0; None is `weight`.
        calibration_updates: how many updates "auto" measures for.

    Raises:
        InputError: an argument is out of its range.
    """

    def __init__(
        self,
        weight: float = 5.0,
        rho: float | Literal["auto"] = "auto",
        delta: float | None = None,
        default_weight: float | None = None,
        *,
        calibration_updates: int = 2,
    ) -> None:
        default_weight = weight if default_weight is None else default_weight
        for name, value in (("weight", weight), ("default_weight", default_weight)):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={value}; expected a finite number above 0.")
        if calibration_updates < 1:
            raise InputError(f"calibration_updates={calibration_updates}; expected 1 or more.")
        self.weight = float(weight)
        self.default_weight = float(default_weight)
        self.calibration_updates = calibration_updates
        self.rho: float | None = None
        self.delta: float | None = None
        if isinstance(rho, str):
            if rho != "auto" or delta is not None:
                raise InputError(f"rho={rho!r}, delta={delta}; expected two numbers, or rho='auto' without delta.")
        else:
            self.rho, self.delta = float(rho), 0.1 * rho if delta is None else float(delta)
            if not (self.delta >= 0 and self.rho - self.delta > 0 and self.rho + self.delta < 100):
                raise InputError(
                    f"rho={self.rho}, delta={self.delta}; expected percents with 0 < rho - delta, delta >= 0 and "
                    "rho + delta < 100."
                )
        self._shares = MeanShare()
        self._adapting = True
        self._calibrations = 0
        self._calibration_spans: list[Span] = []

    def __repr__(self) -> str:
        """Return the call that makes a modulator with these settings, beginning with the λ of now."""
        settings = f"weight={self.weight}, rho={self.rho}, delta={self.delta}, default_weight={self.default_weight}"
        if self.rho is None:
            settings = f"weight={self.weight}, rho='auto', default_weight={self.default_weight}"
            settings += f", calibration_updates={self.calibration_updates}"
        return f"{type(self).__name__}({settings})"

    @property
    def calibration(self) -> Calibration | None:
        """What `rho="auto"` saw and chose; None until it has chosen, and where ρ was given."""
        if self.rho is None or self.delta is None or not self._calibration_spans:
            return None
        shares = tuple(span.mean for span in self._calibration_spans)
        steps = math.ceil(math.fsum(span.number for span in self._calibration_spans))
        return Calibration(shares, self.rho, self.delta, steps)

    def observe(self, share: Tensor | float) -> None:
        """Take the share of one step in percent, 0-dim; one that is not finite is left out. Never reads the device."""
        self._shares.add(share)

    def finish_adapting(self) -> None:
        """From the next update on λ is the default weight: the last stage of the reference's recipe."""
        self._adapting = False

    def update(self) -> Update:
        """Move λ by the shares since the last update, those of all ranks, so that every rank gets the same λ.

        Reads the device. Where torch.distributed runs, every rank must call it.
        """
        spans = self._shares.take()
        share, previous = mean_share(spans), self.weight
        self.weight, reason = self._decide(share, spans)
        return Update(previous, self.weight, share, reason)

    def _decide(self, share: float | None, spans: Sequence[Span]) -> tuple[float, Reason]:
        if share is not None and share < NO_GRADIENT:
            calibrating = self.rho is None and self._adapting
            return self.weight if calibrating else self.default_weight, "no_gradient"
        if not self._adapting:
            return self.default_weight, "final_phase"
        if share is None:
            return self.weight, "no_observation"
        if self.rho is None or self.delta is None:
            return self.weight, self._calibrate(spans)
        low, high = self.rho - self.delta, self.rho + self.delta
        if low <= share <= high or self.weight <= _SMALLEST_WEIGHT:
            return self.weight, "unchanged"
        ratio = max(_odds(high if share < low else low) / _odds(share), _SMALLEST_RATIO)
        weight = min(max(self.weight * ratio, self.weight / 10), self.weight * 10)
        return weight, "raised" if weight > self.weight else "lowered"

    def _calibrate(self, spans: Sequence[Span]) -> Reason:
        self._calibrations += 1
        self._calibration_spans += spans
        rho = mean_share(self._calibration_spans)
        if self._calibrations < self.calibration_updates or rho is None:
            return "calibrating"
        self.rho = rho
        self.delta = min(0.1 * rho, 0.5 * (100 - rho))  # the window ends below 100, as far as ρ does
        return "calibrated"

    def state_dict(self) -> dict[str, Any]:
        """Return settings and state as JSON-able values. Reads the device."""
        return {
            "kind": type(self).__name__,
            "weight": self.weight,
            "default_weight": self.default_weight,
            "rho": self.rho,
            "delta": self.delta,
            "adapting": self._adapting,
            "calibration_updates": self.calibration_updates,
            "calibrations": self._calibrations,
            "calibration_spans": [[span.total, span.number] for span in self._calibration_spans],
            **self._shares.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from, settings included.

        Raises:
            WeightsError: the state is not one of a GradientModulator.
        """
        check_state(state, self.state_dict())
        self.weight = state["weight"]
        self.default_weight = state["default_weight"]
        self.rho = state["rho"]
        self.delta = state["delta"]
        self._adapting = state["adapting"]
        self.calibration_updates = state["calibration_updates"]
        self._calibrations = state["calibrations"]
        self._calibration_spans = [Span(total, count) for total, count in state["calibration_spans"]]
        self._shares.load_state_dict(state)


def _odds(share: float) -> float:
    """Return p / (1 − p) for a share in percent; huge, but a number, where the tap has the whole gradient."""
    return share / max(100 - share, 1e-7)
