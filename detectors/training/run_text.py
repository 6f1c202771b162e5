"""How the figures of a run are written, in the terminal and in the report."""

from __future__ import annotations

import math


def figure(value: float, digits: int = 4) -> str:
    """Return a number with so many significant digits at most: 12.35, 1234, 0.0004, 2.5e-5."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.{digits}g}"
    mantissa, e, exponent = text.partition("e")
    return f"{value:.0f}" if e and int(exponent) >= 0 else f"{mantissa}e{int(exponent)}" if e else text


def duration(seconds: float) -> str:
    """Return a time in its two largest units: 0.8 s, 42 s, 3 min 12 s, 3 h 12 min, 2 d 3 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, rest, small in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            large, left = divmod(whole, size)
            return f"{large} {unit} {left // rest} {small}"
    return f"{whole} s"


def memory(size: float) -> str:
    """Return bytes as MiB or GiB."""
    mebibytes = size / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.1f} GiB"


def precision(value: float | None) -> str:
    """Return one of COCO's figures, or a dash where there was nothing to measure."""
    return "–" if value is None else f"{value:.3f}"
