"""Calibration: what a modulator with `rho="auto"` measured, and what it made of it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

_PER_LINE = 20


@dataclass(frozen=True)
class Calibration:
    """The report of `GradientModulator(rho="auto")`; `str()` makes it readable.

    Attributes:
        shares: the share over time in percent, each point the mean over consecutive steps, at most 20 for an update.
        rho: what was chosen: the mean share of all steps.
        delta: half the width of the window around it: a tenth of ρ, less where the window would reach 100.
        steps: how many finite shares a process saw.
    """

    shares: tuple[float, ...]
    rho: float
    delta: float
    steps: int

    @property
    def spread(self) -> float:
        """The standard deviation of the curve's points, in percent."""
        return statistics.pstdev(self.shares)

    @property
    def trend(self) -> float:
        """The change from the mean of the curve's first quarter to that of its last, in percent points."""
        quarter = max(len(self.shares) // 4, 1)
        return statistics.fmean(self.shares[-quarter:]) - statistics.fmean(self.shares[:quarter])

    @property
    def settled(self) -> bool:
        """Whether the trend is at most δ: if not, ρ is the mean of shares that have gone elsewhere."""
        return abs(self.trend) <= self.delta

    def __str__(self) -> str:
        low, high = self.rho - self.delta, self.rho + self.delta
        rows = [self.shares[first : first + _PER_LINE] for first in range(0, len(self.shares), _PER_LINE)]
        lines = [
            f"calibrated over {self.steps} steps: ρ = {self.rho:.4g} %, δ = {self.delta:.3g} %; from here on λ keeps "
            f"the share between {low:.4g} and {high:.4g} %",
            "share over time in percent:",
            *("  " + " ".join(f"{share:.3g}" for share in row) for row in rows),
            f"spread {self.spread:.3g} %, trend {self.trend:+.3g} percent points from the first to the last quarter",
        ]
        if not self.settled:
            lines.append(
                "the share was still moving: its trend is larger than δ. Next time let it settle with more "
                "calibration_updates, or take vfmdistill.suggest_modulator(log) of this run"
            )
        return "\n".join(lines)
