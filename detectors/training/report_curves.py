"""Curves over the epochs of a run, as SVG that needs neither script nor style from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from .report_markup import Html, join, tag
from .run_text import figure

# Units of the drawing; at the width that the page gives a chart they are about pixels, on a phone too.
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 220, 46, 8, 22, 24
_ROW = 15  # of the text that says the values of an epoch
_LETTER = 6.3  # mean width of one there
_MOST_COLUMNS = 160  # epochs whose values can be asked for; of longer runs every n-th
_DOTS = 30  # longest curve whose points are marked
_COLOURS = 8  # that report.css has


class Line(NamedTuple):
    """One curve.

    Attributes:
        name: of it.
        values: by epoch.
        band: lower and upper bound of its shaded surroundings, by epoch.
    """

    name: str
    values: Mapping[int, float]
    band: Mapping[int, tuple[float, float]] | None = None


class Epochs(NamedTuple):
    """The horizontal axis of all curves of a run.

    Attributes:
        number: how many epochs are shown, from 0.
        stages: first epoch of each stage.
        resumed: epochs that a later process started with.
        bad: epochs with steps that were left out.
    """

    number: int
    stages: Sequence[int] = ()
    resumed: Sequence[int] = ()
    bad: Sequence[int] = ()

    def x(self, epoch: float) -> float:
        """Where an epoch begins; its values stand in its middle, at epoch + 0.5."""
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * epoch / max(self.number, 1)


def chart(
    title: str,
    lines: Sequence[Line],
    epochs: Epochs,
    *,
    unit: str = "",
    window: Mapping[int, tuple[float, float]] | None = None,
    from_zero: bool = True,
    marks: Sequence[tuple[float, str]] = (),
) -> Html:
    """Return a figure with one or more curves, and the latest value of each in its legend; nothing without values.

    Args:
        title: what is shown.
        lines: the curves; those without values are left out.
        epochs: the horizontal axis.
        unit: follows every value.
        window: lower and upper bound of a shaded band, by epoch.
        from_zero: whether the vertical axis includes 0.
        marks: (epoch, text) of vertical lines of this chart alone.
    """
    lines = [line for line in lines if line.values]
    if not lines:
        return Html("")
    seen = [value for line in lines for value in line.values.values()]
    for surface in (window or {}, *(line.band or {} for line in lines)):
        seen += [bound for bounds in surface.values() for bound in bounds]
    ticks = round_ticks(min([*seen, 0.0] if from_zero else seen), max([*seen, 0.0] if from_zero else seen))
    low, high = ticks[0], ticks[-1]

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - low) / (high - low)

    drawing = tag(
        "svg",
        _stages(epochs),
        _grid(epochs, {tick: y(tick) for tick in ticks}),
        _window(epochs, {epoch: (y(least), y(most)) for epoch, (least, most) in (window or {}).items()}),
        *(
            _band(epochs, {e: (y(a), y(b)) for e, (a, b) in (line.band or {}).items()}, i)
            for i, line in enumerate(lines)
        ),
        *(_mark(epochs.x(epoch), text) for epoch, text in marks),
        *(_curve(epochs, {e: y(v) for e, v in line.values.items()}, index) for index, line in enumerate(lines)),
        _values(epochs, lines, unit),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=title,
    )
    legend = [
        tag("li", tag("i", class_=_colour(index)), f"{line.name} ", tag("b", _latest(line) + unit))
        for index, line in enumerate(lines)
    ]
    return tag("figure", tag("figcaption", title), drawing, tag("ul", *legend, class_="legend"))


def spark(values: Mapping[int, float], epochs: Epochs) -> Html:
    """Return a small curve of values in [0, 1], without axes."""
    step = math.ceil(len(values) / 60)
    points = [(100 * (e + 0.5) / epochs.number, 20 - 18 * v) for e, v in sorted(values.items())[::step]]
    return tag("svg", tag("path", d=_path(points), class_="line s0"), viewBox="0 0 100 22", class_="spark")


def _colour(index: int) -> str:
    return f"s{index % _COLOURS}"


def _latest(line: Line) -> str:
    return figure(line.values[max(line.values)])


def round_ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers, the first and last of which enclose two values."""
    if high <= low:
        margin = 0.1 * abs(low)
        low, high = (low - margin, high + margin) if margin else (0.0, 1.0)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def _grid(epochs: Epochs, rows: Mapping[float, float]) -> Html:
    horizontal = [
        join(
            (
                tag("path", d=f"M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}", class_="grid"),
                tag("text", figure(value), x=_LEFT - 6, y=f"{y + 4:.1f}", text_anchor="end"),
            )
        )
        for value, y in rows.items()
    ]
    step = next((n for n in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500) if epochs.number / n <= 8), 1000)
    numbers = [
        tag("text", str(epoch), x=f"{epochs.x(epoch + 0.5):.1f}", y=_HEIGHT - 7, text_anchor="middle")
        for epoch in range(0, epochs.number, step)
    ]
    return join((*horizontal, *numbers, _ticked(epochs, epochs.resumed, "resumed"), _ticked(epochs, epochs.bad, "bad")))


def _ticked(epochs: Epochs, where: Sequence[int], kind: str) -> Html:
    """Return small triangles on the axis; those of bad steps stand in the middle of their epoch."""
    bottom = _HEIGHT - _BOTTOM
    places = [epochs.x(epoch + (0.5 if kind == "bad" else 0.0)) for epoch in where if epoch < epochs.number]
    return join(tag("path", d=f"M{x - 4:.1f} {bottom}h8l-4 -7z", class_=kind) for x in places)


def _stages(epochs: Epochs) -> Html:
    """Return the background: a number at the start of each stage, every second one shaded."""
    parts = []
    starts = [start for start in epochs.stages if start < epochs.number]
    for index, (start, end) in enumerate(pairwise([*starts, epochs.number])):
        x, width = epochs.x(start), epochs.x(end) - epochs.x(start)
        height = _HEIGHT - _TOP - _BOTTOM
        parts.append(tag("rect", x=f"{x:.1f}", y=_TOP, width=f"{width:.1f}", height=height, class_=f"stage{index % 2}"))
        if width >= 10:
            parts.append(tag("text", str(index + 1), x=f"{x + 4:.1f}", y=_TOP - 7, class_="number"))
    return join(parts)


def _mark(x: float, text: str) -> Html:
    anchor = "end" if x > _WIDTH * 0.7 else "start"
    left = x - 5 if anchor == "end" else x + 5
    label = tag("text", text, x=f"{left:.1f}", y=_HEIGHT - _BOTTOM - 7, text_anchor=anchor)
    return join((tag("path", d=f"M{x:.1f} {_TOP}V{_HEIGHT - _BOTTOM}", class_="mark"), label))


def _window(epochs: Epochs, bounds: Mapping[int, tuple[float, float]]) -> Html:
    if not bounds:
        return Html("")
    upper = [point for e, (_, y) in sorted(bounds.items()) for point in ((epochs.x(e), y), (epochs.x(e + 1), y))]
    lower = [point for e, (y, _) in sorted(bounds.items()) for point in ((epochs.x(e), y), (epochs.x(e + 1), y))]
    return tag("path", d=_path([*upper, *reversed(lower)]) + "z", class_="window")


def _band(epochs: Epochs, bounds: Mapping[int, tuple[float, float]], index: int) -> Html:
    if len(bounds) < 2:
        return Html("")
    rows = sorted(bounds.items())
    upper = [(epochs.x(epoch + 0.5), y) for epoch, (_, y) in rows]
    lower = [(epochs.x(epoch + 0.5), y) for epoch, (y, _) in rows]
    return tag("path", d=_path([*upper, *reversed(lower)]) + "z", class_=f"band {_colour(index)}")


def _curve(epochs: Epochs, rows: Mapping[int, float], index: int) -> Html:
    points = [(epochs.x(epoch + 0.5), y) for epoch, y in sorted(rows.items())]
    dots = [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.4, class_=_colour(index)) for x, y in points]
    return join((tag("path", d=_path(points), class_=f"line {_colour(index)}"), *(dots if len(dots) <= _DOTS else ())))


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _values(epochs: Epochs, lines: Sequence[Line], unit: str) -> Html:
    """Return what appears over an epoch that is pointed at or touched: its number and its values."""
    shown = sorted({epoch for line in lines for epoch in line.values})
    step = math.ceil(len(shown) / _MOST_COLUMNS)
    groups = []
    for epoch in shown[::step]:
        texts = [f"epoch {epoch}"]
        texts += [f"{line.name} {figure(line.values[epoch])}{unit}" for line in lines if epoch in line.values]
        x, middle = epochs.x(epoch), epochs.x(epoch + 0.5)
        width = max(map(len, texts)) * _LETTER + 14
        left = middle + 7 if middle < (_WIDTH + _LEFT) / 2 else middle - 7 - width
        rows = [tag("tspan", text, x=f"{left + 7:.1f}", dy=_ROW) for text in texts]
        box = tag("rect", x=f"{left:.1f}", y=_TOP + 4, width=f"{width:.0f}", height=len(texts) * _ROW + 7, rx=4)
        column = (epochs.x(epoch + step) - x, _HEIGHT - _BOTTOM - _TOP)
        groups.append(
            tag(
                "g",
                tag("rect", x=f"{x:.1f}", y=_TOP, width=f"{column[0]:.2f}", height=column[1], class_="hit"),
                tag(
                    "g", tag("path", d=f"M{middle:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"), box, tag("text", *rows, y=_TOP + 4)
                ),
                class_="at",
            )
        )
    return join(groups)
