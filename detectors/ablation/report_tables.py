"""What an ablation found, as tables of text, for the page and for Markdown alike."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from detectors.training.run_text import duration, memory

from .comparison import METRICS
from .findings import ArmSummary, Contrast, Difference, Findings, Interval
from .record import AblationRecord
from .sheet import Sheet
from .verdicts import signed


def difference_sheets(findings: Findings) -> list[Sheet]:
    """Return the arms against their baselines, and methods against their controls, where there are any."""
    return [
        _differences(
            "Differences, paired by seed",
            findings.contrasts,
            "In AP points, arm minus the other. p is that of the paired t test, before and after Holm's correction "
            "over all rows. Seeds: how many pairs would show a difference of 0.3 AP at this spread, with a power of "
            "80 % and without other comparisons.",
        ),
        _differences(
            "Methods against their controls",
            findings.controls,
            "A control has all that the method has but the teacher's semantics. A method that is not better than its "
            "control has not gained by them.",
        ),
    ]


def arms_sheet(findings: Findings) -> Sheet:
    """Return each arm by itself."""
    rows = tuple(
        (summary.arm.name, str(len(summary.seeds)), *(_mean(summary, name) for name in METRICS))
        for summary in findings.summaries
    )
    note = "In AP points, mean ± standard deviation over the seeds, of the averaged weights after the last epoch."
    return Sheet("Arms", ("arm", "seeds", *METRICS), rows, note=note)


def class_sheet(findings: Findings) -> Sheet:
    """Return the AP of each class in each arm, and its mean difference to the baseline."""
    names = list(dict.fromkeys(name for summary in findings.summaries for name in summary.per_class))
    by_arm = {contrast.arm: contrast.per_class for contrast in findings.contrasts}

    def cell(summary: ArmSummary, name: str) -> str:
        ap = summary.per_class.get(name)
        if ap is None:
            return "–"
        difference = by_arm.get(summary.arm.name, {}).get(name)
        return f"{ap:.1f}" if difference is None else f"{ap:.1f} ({difference:+.1f})".replace("-", "−")

    rows = tuple((name, *(cell(summary, name) for summary in findings.summaries)) for name in names)
    note = "AP points, mean over the seeds; in brackets the mean paired difference to the baseline."
    return Sheet("Classes", ("class", *(summary.arm.name for summary in findings.summaries)), rows, note=note)


def cost_sheet(record: AblationRecord, findings: Findings) -> Sheet:
    """Return what an arm costs while it trains; at inference all are the same network."""
    steps = {summary.arm.name: summary.step_seconds for summary in findings.summaries}
    rows = []
    for summary in findings.summaries:
        own, base = summary.step_seconds, steps.get(summary.arm.baseline or "")
        runs = [run for run in record.records if run.arm == summary.arm.name]
        kinds = {str(run.peak_memory["of"]) for run in runs if run.peak_memory is not None}
        seconds = [run.seconds for run in runs if run.seconds is not None]
        rows.append(
            (
                summary.arm.name,
                "–" if own is None else f"{own:.3f} s",
                f"{own / base:.2f} ×" if own is not None and base else "–",
                "–" if summary.peak_memory is None else f"{memory(summary.peak_memory)} ({', '.join(sorted(kinds))})",
                duration(median(seconds)) if seconds else "–",
            )
        )
    note = (
        "Medians over the seeds. Runs that shared a machine slowed each other down: how much the teaching costs is "
        "measured by benchmarks of its own. At inference nothing is left of it."
    )
    return Sheet("Cost of training", ("arm", "step", "of the baseline's", "peak memory", "run"), tuple(rows), note=note)


def runs_sheet(record: AblationRecord) -> Sheet:
    """Return every run, by seed and in the order of the arms."""
    order = {arm.name: number for number, arm in enumerate(record.arms)}
    rows = []
    for run in sorted(record.records, key=lambda run: (run.seed, order[run.arm])):
        figures = (f"{100 * run.figures[name]:.2f}" if name in run.figures else "–" for name in METRICS)
        best = f"{100 * run.best['AP']:.2f} ({run.best['epoch']:.0f})" if run.best else "–"
        took = duration(run.seconds) if run.seconds is not None else "–"
        rows.append((str(run.seed), run.arm, run.host, *figures, best, took))
    header = ("seed", "arm", "machine", *METRICS, "best AP (epoch)", "time")
    note = (
        "AP points after the last epoch. The best epoch is shown, and used for nothing: the images that judge chose it."
    )
    return Sheet("Every run", header, tuple(rows), text_columns=3, note=note)


def missing_sheet(record: AblationRecord) -> Sheet:
    """Return the runs that there is no record of."""
    rows = tuple((missing.arm, str(missing.seed), missing.reason) for missing in record.missing)
    return Sheet("Missing runs", ("arm", "seed", "why"), rows, text_columns=3)


def teacher_sheet(record: AblationRecord) -> Sheet:
    """Return the teachers with the licences of their weights."""
    specs = {str(spec["name"]): spec for run in record.records for spec in run.teachers if "name" in spec}
    rows = []
    for name, spec in specs.items():
        source = next((str(spec[key]) for key in ("package", "model_id") if spec.get(key)), "–")
        count = spec.get("params")
        size = f"{count / 1e6:.1f} M" if isinstance(count, (int, float)) else "–"
        rows.append((name, str(spec.get("license") or "not stated"), source, size))
    note = (
        "The licence is that of the weights, as the place that they come from states it. Trained detectors hold none."
    )
    return Sheet("Teachers", ("teacher", "licence", "weights", "parameters"), tuple(rows), text_columns=3, note=note)


def settings_sheet(record: AblationRecord) -> Sheet:
    """Return what each arm is."""
    rows = []
    for arm in record.arms:
        settings = ", ".join(f"{name} = {'–' if value is None else value}" for name, value in arm.settings.items())
        of = f", beside {arm.control_of}" if arm.control_of else ""
        rows.append((arm.name, arm.kind + of, arm.baseline or "–", settings))
    return Sheet("What the arms are", ("arm", "kind", "compared with", "settings"), tuple(rows), text_columns=4)


def _differences(title: str, contrasts: Sequence[Contrast], note: str) -> Sheet:
    rows = []
    for contrast in contrasts:
        ap = contrast.differences["AP"]
        others = (contrast.differences.get(name) for name in METRICS[1:])
        rows.append(
            (
                contrast.arm,
                contrast.other,
                str(len(ap.values)),
                signed(ap.mean),
                interval_text(ap.t),
                interval_text(ap.bootstrap),
                _p(ap.p),
                _p(contrast.p_holm),
                *("–" if other is None else _with_half(other) for other in others),
                "–" if contrast.seeds_needed is None else f"{contrast.seeds_needed:,}",
            )
        )
    header = ("arm", "against", "pairs", "AP", "95 % t", "95 % bootstrap", "p", "p Holm", "AP50", "AP75", "seeds")
    return Sheet(title, header, tuple(rows), text_columns=2, note=note)


def interval_text(interval: Interval | None) -> str:
    """Return an interval in AP points, a dash for none."""
    return "–" if interval is None else f"{signed(interval.low)} … {signed(interval.high)}"


def _with_half(difference: Difference) -> str:
    if difference.t is None:
        return signed(difference.mean)
    return f"{signed(difference.mean)} ± {difference.t.high - difference.mean:.2f}"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _mean(summary: ArmSummary, name: str) -> str:
    if name not in summary.means:
        return "–"
    deviation = summary.deviations[name]
    return f"{summary.means[name]:.2f}" + ("" if deviation is None else f" ± {deviation:.2f}")
