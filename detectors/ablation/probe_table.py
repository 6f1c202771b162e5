"""Tables of what a probe found: every arm beside the first, with intervals, and what stands beside the arms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeAlias

from .findings import Difference
from .probe_record import ProbeRecord
from .sheet import Sheet
from .statistics import paired_difference

Figure: TypeAlias = Callable[[ProbeRecord], float]


@dataclass(frozen=True)
class Line:
    """One figure of one arm.

    Attributes:
        arm: its name.
        mean: over its runs.
        deviation: standard deviation (n − 1); None of a single run.
        difference: to the first arm, paired by seed; None for that arm itself, and without a common seed.
    """

    arm: str
    mean: float
    deviation: float | None
    difference: Difference | None


def lines_of(records: Sequence[ProbeRecord], figure: Figure) -> list[Line]:
    """Return a figure of every arm, in the order in which they come; the first is what others are compared with."""
    first = _by_seed(records, records[0].arm, figure)
    lines = []
    for arm in dict.fromkeys(record.arm for record in records):
        values = [figure(record) for record in records if record.arm == arm]
        own = _by_seed(records, arm, figure)
        compared = arm != records[0].arm and bool(own.keys() & first.keys())
        lines.append(
            Line(
                arm,
                fmean(values),
                stdev(values) if len(values) > 1 else None,
                paired_difference(own, first) if compared else None,
            )
        )
    return lines


def sheets_of(records: Sequence[ProbeRecord]) -> list[Sheet]:
    """Return the tables: classes right in percent, then CKA to each teacher.

    Args:
        records: those of the arm that others are compared with come first.
    """
    first = records[0].arm
    runs = {arm: sum(record.arm == arm for record in records) for arm in (record.arm for record in records)}
    right = lines_of(records, lambda record: 100 * record.figures.accuracy)
    shuffled = {line.arm: line for line in lines_of(records, lambda record: 100 * record.figures.shuffled)}
    sheets = [
        Sheet(
            "Classes right at the centres of objects, in percent",
            ("features of", "runs", "right", f"minus {first} [95 %]", "labels shuffled"),
            tuple(
                (line.arm, str(runs[line.arm]), _mean(line, 1), _interval(line, 1), f"{shuffled[line.arm].mean:.1f}")
                for line in right
            ),
        )
    ]
    for name in dict.fromkeys(name for record in records for name in record.alignment):
        those = [record for record in records if name in record.alignment]
        plain, floor = (
            {line.arm: line.mean for line in lines_of(those, figure)}
            for figure in (
                lambda record, name=name: record.alignment[name].plain,
                lambda record, name=name: record.alignment[name].debiased_floor,
            )
        )
        sheets.append(
            Sheet(
                f"Linear CKA to {name}, debiased",
                ("features of", "runs", "CKA", f"minus {first} [95 %]", "maps of other images", "CKA, not debiased"),
                tuple(
                    (line.arm, str(runs[line.arm]), _mean(line, 3), _interval(line, 3),
                     f"{floor[line.arm]:.3f}", f"{plain[line.arm]:.3f}")
                    for line in lines_of(those, lambda record, name=name: record.alignment[name].debiased)  # type: ignore[misc]
                ),
            )
        )  # fmt: skip
    return sheets


def notes_of(records: Sequence[ProbeRecord]) -> list[str]:
    """Return what has to be known to read the tables."""
    figures = records[0].figures
    rows, columns = figures.grid
    notes = [
        f"{figures.train_objects} training objects, {figures.objects} validation objects, maps of {rows} × {columns} "
        f"cells; guessing gets {100 * figures.chance:.1f} % right. Intervals are Student's, over paired seeds: they do "
        "not tell what other validation objects would have given. Students have the weights of their best epoch."
    ]
    first = {record.seed for record in records if record.arm == records[0].arm}
    seeds: dict[str, set[int]] = {}
    for record in records:
        if record.run is not None and record.seed is not None:
            seeds.setdefault(record.arm, set()).add(record.seed)
    for arm, own in seeds.items():
        if own != first:
            notes.append(f"Compared by {len(own & first)} seeds in common with {records[0].arm}: {arm}.")
    edges = [_name(record) for record in records if record.figures.at_edge]
    if edges:
        notes.append(f"The chosen L2 is the strongest or weakest on offer for: {', '.join(edges)}.")
    return notes


def _name(record: ProbeRecord) -> str:
    return record.arm if record.seed is None else f"{record.arm} seed {record.seed}"


def _by_seed(records: Sequence[ProbeRecord], arm: str, figure: Figure) -> Mapping[int, float]:
    return {record.seed: figure(record) for record in records if record.arm == arm and record.seed is not None}


def _mean(line: Line, digits: int) -> str:
    return f"{line.mean:.{digits}f}" + ("" if line.deviation is None else f" ± {line.deviation:.{digits}f}")


def _interval(line: Line, digits: int) -> str:
    if line.difference is None:
        return ""
    mean, t = line.difference.mean, line.difference.t
    return f"{mean:+.{digits}f}" + ("" if t is None else f" [{t.low:+.{digits}f}, {t.high:+.{digits}f}]")
