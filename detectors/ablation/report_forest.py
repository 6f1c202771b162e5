"""The forest plot: every arm's paired difference with its intervals, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from detectors.training.report_curves import round_ticks
from detectors.training.report_markup import Html, join, tag
from detectors.training.run_text import figure

from .findings import Contrast, Difference
from .verdicts import in_words

Placing: TypeAlias = Callable[[float], float]

# Units of the drawing; on a phone about pixels. The name stands above its row, so that long ones have room.
_WIDTH, _LEFT, _RIGHT, _TOP, _ROW, _BOTTOM = 400, 12, 12, 20, 46, 26


def forest(title: str, contrasts: Sequence[Contrast], kinds: Mapping[str, str]) -> Html:
    """Return the differences in AP, each with its seeds as dots; nothing without any.

    The thick line is the 95 % t interval, the thin one under it the bootstrap's.

    Args:
        title: what is shown.
        contrasts: from top to bottom.
        kinds: of the arms; controls are drawn in grey.
    """
    if not contrasts:
        return Html("")
    seen = [0.0]
    for contrast in contrasts:
        difference = contrast.differences["AP"]
        seen += [*difference.values.values(), *(difference.t or ()), *(difference.bootstrap or ())]
    ticks = round_ticks(min(seen), max(seen))
    low, high = ticks[0], ticks[-1]
    bottom = _TOP + _ROW * len(contrasts)

    def x(value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low)

    grid = [
        join(
            (
                tag("path", d=f"M{x(tick):.1f} {_TOP - 8}V{bottom}", class_="zero" if tick == 0 else "grid"),
                tag("text", _tick(tick), x=f"{x(tick):.1f}", y=bottom + 16, text_anchor="middle"),
            )
        )
        for tick in ticks
    ]
    rows = [
        _row(contrast, kinds.get(contrast.arm, "method"), _TOP + _ROW * number, x)
        for number, contrast in enumerate(contrasts)
    ]
    drawing = tag(
        "svg", *grid, *rows, viewBox=f"0 0 {_WIDTH} {bottom + _BOTTOM}", role="img", aria_label=title, class_="forest"
    )
    words = (
        "AP points. Square: mean. Thick line: 95 % t interval. Thin line: 95 % bootstrap interval, from 4 seeds on. "
        "Circles: single seeds."
    )
    grey = " Grey: controls." if any(kinds.get(contrast.arm) == "control" for contrast in contrasts) else ""
    legend = tag("p", words + grey, class_="note")
    return tag("figure", tag("figcaption", title), drawing, legend)


def _row(contrast: Contrast, kind: str, top: float, x: Placing) -> Html:
    difference = contrast.differences["AP"]
    middle = top + 26
    name = contrast.arm if contrast.other == "off" else f"{contrast.arm} − {contrast.other}"
    parts = [
        tag("title", f"{contrast.arm} − {contrast.other}: {in_words(difference)}"),
        tag("text", name, x=_LEFT, y=top + 12, class_="arm"),
        *_lines(difference, middle, x),
        *(tag("circle", cx=f"{x(value):.1f}", cy=middle, r=2.2) for value in difference.values.values()),
        tag("rect", x=f"{x(difference.mean) - 4.5:.1f}", y=middle - 4.5, width=9, height=9),
    ]
    return tag("g", *parts, class_=f"row {kind}")


def _lines(difference: Difference, middle: float, x: Placing) -> list[Html]:
    found = []
    if difference.t is not None:
        found.append(tag("path", d=f"M{x(difference.t.low):.1f} {middle}H{x(difference.t.high):.1f}", class_="t"))
    if difference.bootstrap is not None:
        low, high = difference.bootstrap
        found.append(tag("path", d=f"M{x(low):.1f} {middle + 8}H{x(high):.1f}", class_="bootstrap"))
    return found


def _tick(value: float) -> str:
    return f"+{figure(value)}" if value > 0 else figure(value).replace("-", "−")
