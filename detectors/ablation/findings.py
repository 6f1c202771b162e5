"""What the comparison of an ablation's arms found, as numbers in AP points (COCO AP × 100) and as words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from .arms import Arm


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, one of each seed, and how sure it is.

    Attributes:
        values: the differences by seed.
        mean: of them.
        deviation: their standard deviation (n − 1); None of a single one.
        t: 95 % interval of the mean after Student; None of a single one.
        bootstrap: 95 % interval by resampling the seeds; None of fewer than four.
        p: two-sided p of the paired t test; None of a single one.
    """

    values: Mapping[int, float]
    mean: float
    deviation: float | None = None
    t: Interval | None = None
    bootstrap: Interval | None = None
    p: float | None = None


@dataclass(frozen=True)
class ArmSummary:
    """An arm by itself, in AP points.

    Attributes:
        arm: which one.
        seeds: those that are done.
        means, deviations: of "AP", "AP50" and "AP75" over the seeds; deviations are None of a single one.
        per_class: mean AP of each class over the seeds that measured it; None where none did.
        step_seconds, peak_memory: medians over the seeds; None where they are not known.
    """

    arm: Arm
    seeds: tuple[int, ...]
    means: Mapping[str, float]
    deviations: Mapping[str, float | None]
    per_class: Mapping[str, float | None]
    step_seconds: float | None = None
    peak_memory: float | None = None


@dataclass(frozen=True)
class Contrast:
    """An arm against another, in AP points, over the seeds that both have.

    Attributes:
        arm, other: names; differences are arm − other.
        differences: of "AP", "AP50" and "AP75".
        per_class: mean difference of each class that both measured.
        p_holm: p of the difference in AP after Holm's correction over all arms of the ablation; None of one seed.
        seeds_needed: paired seeds that would show a difference of 0.3 AP at the seen spread in a single comparison
            (two-sided 5 %, power 80 %), at least as many as a verdict takes; None of one seed.
        verdict: one sentence about AP.
    """

    arm: str
    other: str
    differences: Mapping[str, Difference]
    per_class: Mapping[str, float]
    p_holm: float | None
    seeds_needed: int | None
    verdict: str


@dataclass(frozen=True)
class Findings:
    """All that the comparison of an ablation found.

    Attributes:
        headline: the first thing that the report says; where a control does as well as its teacher, it says that.
        summaries: every arm with at least one finished run, in the ablation's order.
        contrasts: every arm with a teacher against its baseline, in order; those without a common seed are left out.
        controls: every method against its control ("control_of"), in order.
    """

    headline: str
    summaries: tuple[ArmSummary, ...]
    contrasts: tuple[Contrast, ...]
    controls: tuple[Contrast, ...]
