"""From the runs of an ablation to what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, median, stdev

from .arms import Arm
from .findings import ArmSummary, Contrast, Difference, Findings
from .headline import headline
from .record import AblationRecord, TrialRecord
from .statistics import holm, paired_difference, seeds_needed
from .verdicts import FEWEST, verdict_on_baseline, verdict_on_control

METRICS = ("AP", "AP50", "AP75")
SCOPE = (
    "The intervals are about seeds: what other trainings on these images, judged on these validation images, would "
    "give. They say nothing about other images."
)
RESOLVED = 0.3  # AP points

_Runs = Mapping[int, TrialRecord]


def compare(record: AblationRecord) -> Findings:
    """Return what the runs say: of each arm, of each against its baseline, and of methods against their controls.

    Pairs are compared over the seeds that both have. p values are corrected by Holm over all arms with a teacher, and
    apart from these over all pairs of method and control.

    Raises:
        InputError: a figure is not finite.
    """
    runs: dict[str, dict[int, TrialRecord]] = {arm.name: {} for arm in record.arms}
    for run in record.records:
        runs[run.arm][run.seed] = run
    taught = [arm for arm in record.arms if arm.baseline is not None]
    contrasts = _corrected(
        [_contrast(arm.name, str(arm.baseline), runs) for arm in taught], verdict=verdict_on_baseline
    )
    pairs = [(arm.control_of, arm.name) for arm in record.arms if arm.control_of is not None]
    controls = _corrected([_contrast(method, control, runs) for method, control in pairs], verdict=verdict_on_control)
    summaries = tuple(_summary(arm, runs[arm.name]) for arm in record.arms if runs[arm.name])
    kinds = {arm.name: arm.kind for arm in record.arms}
    return Findings(headline(kinds, contrasts, controls, len(record.missing)), summaries, contrasts, controls)


def _summary(arm: Arm, runs: _Runs) -> ArmSummary:
    values = {name: [100 * run.figures[name] for run in runs.values() if name in run.figures] for name in METRICS}
    steps = [run.step_seconds for run in runs.values() if run.step_seconds is not None]
    peaks = [float(run.peak_memory["bytes"]) for run in runs.values() if run.peak_memory is not None]
    names = dict.fromkeys(name for run in runs.values() for name in run.per_class)
    by_class = {name: [ap for run in runs.values() if (ap := run.per_class.get(name)) is not None] for name in names}
    return ArmSummary(
        arm=arm,
        seeds=tuple(sorted(runs)),
        means={name: fmean(some) for name, some in values.items() if some},
        deviations={name: stdev(some) if len(some) > 1 else None for name, some in values.items() if some},
        per_class={name: 100 * fmean(some) if some else None for name, some in by_class.items()},
        step_seconds=median(steps) if steps else None,
        peak_memory=median(peaks) if peaks else None,
    )


def _contrast(arm: str, other: str, runs: Mapping[str, _Runs]) -> Contrast | None:
    differences: dict[str, Difference] = {}
    for name in METRICS:
        found = paired_difference(_points(runs[arm], name), _points(runs[other], name))
        if found is not None:
            differences[name] = found
    if "AP" not in differences:
        return None
    deviation = differences["AP"].deviation
    return Contrast(
        arm=arm,
        other=other,
        differences=differences,
        per_class=_class_differences(runs[arm], runs[other]),
        p_holm=differences["AP"].p,  # before the correction, which needs all of them
        seeds_needed=None if deviation is None else max(FEWEST, seeds_needed(deviation, RESOLVED)),
        verdict="",
    )


def _corrected(found: Sequence[Contrast | None], *, verdict: Callable[[Contrast], str]) -> tuple[Contrast, ...]:
    contrasts = [contrast for contrast in found if contrast is not None]
    tested = [contrast.p_holm for contrast in contrasts if contrast.p_holm is not None]
    corrected = iter(holm(tested))
    judged = []
    for contrast in contrasts:
        p = None if contrast.p_holm is None else next(corrected)
        judged.append(replace(contrast, p_holm=p))
    return tuple(replace(contrast, verdict=verdict(contrast)) for contrast in judged)


def _points(runs: _Runs, name: str) -> dict[int, float]:
    return {seed: 100 * run.figures[name] for seed, run in runs.items() if name in run.figures}


def _class_differences(runs: _Runs, others: _Runs) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for seed in sorted(runs.keys() & others.keys()):
        for name, ap in runs[seed].per_class.items():
            other = others[seed].per_class.get(name)
            if ap is not None and other is not None:
                values.setdefault(name, []).append(100 * (ap - other))
    return {name: fmean(some) for name, some in values.items()}
