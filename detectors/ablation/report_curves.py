"""Curves over the epochs, as means over the seeds with bands: AP of every arm beside its baseline, λ, and the share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from detectors.training.report_curves import Epochs, Line, chart
from detectors.training.report_markup import Html, tag

from .record import AblationRecord, TrialRecord

_FIELDS = (("share", "Share of the tap, percent"), ("weight", "λ"), ("semantic_loss", "Semantic loss, without λ"))


def precision_curves(record: AblationRecord) -> Html:
    """Return a chart of AP for every arm with a teacher beside its baseline, over the seeds that both have."""
    charts = []
    for arm in record.arms:
        if arm.baseline is None:
            continue
        own, base = _runs(record, arm.name), _runs(record, arm.baseline)
        common = own.keys() & base.keys()
        if common:
            lines = [
                seeds_line(name, [runs[seed] for seed in sorted(common)], "AP", scale=100)
                for name, runs in ((arm.baseline, base), (arm.name, own))
            ]
            charts.append(chart(f"AP of {arm.name}", lines, _epochs(record), from_zero=False))
    return _grid(charts)


def teaching_curves(record: AblationRecord) -> Html:
    """Return charts of what the teaching did: λ, share and semantic loss of every arm with a teacher."""
    taught = [arm.name for arm in record.arms if arm.baseline is not None]
    charts = []
    for field, title in _FIELDS:
        lines = [seeds_line(name, list(_runs(record, name).values()), field) for name in taught]
        charts.append(chart(title, lines, _epochs(record)))
    return _grid(charts)


def seeds_line(name: str, runs: Sequence[TrialRecord], field: str, *, scale: float = 1.0) -> Line:
    """Return the mean of a figure over some runs by epoch, within a band from their lowest to their highest.

    Only epochs that all runs measured are taken, so that a point of the curve is not another mean than its neighbour.
    """
    values: dict[int, list[float]] = {}
    for run in runs:
        for epoch in run.epochs:
            value = getattr(epoch, field)
            if value is not None:
                values.setdefault(epoch.epoch, []).append(scale * value)
    whole = {epoch: some for epoch, some in values.items() if len(some) == len(runs)}
    return Line(
        name,
        {epoch: fmean(some) for epoch, some in whole.items()},
        {epoch: (min(some), max(some)) for epoch, some in whole.items()} if len(runs) > 1 else None,
    )


def _runs(record: AblationRecord, arm: str) -> Mapping[int, TrialRecord]:
    return {run.seed: run for run in record.records if run.arm == arm}


def _epochs(record: AblationRecord) -> Epochs:
    return Epochs(max((epoch.epoch + 1 for run in record.records for epoch in run.epochs), default=1))


def _grid(charts: Sequence[Html]) -> Html:
    shown = [found for found in charts if found]
    return tag("div", *shown, class_="charts") if shown else Html("")
