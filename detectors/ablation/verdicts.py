"""What a difference between two arms means, in a sentence."""

from __future__ import annotations

from typing import Literal, TypeAlias

from .findings import Contrast, Difference

ALPHA = 0.05
FEWEST = 3  # paired seeds that a verdict needs: of two, Student's interval has one degree of freedom

Outcome: TypeAlias = Literal["gain", "loss", "open", "too few"]


def outcome(contrast: Contrast) -> Outcome:
    """Return which way the difference in AP goes, after Holm's correction; "open" where that cannot be told."""
    difference = contrast.differences["AP"]
    if len(difference.values) < FEWEST or contrast.p_holm is None:
        return "too few"
    if contrast.p_holm < ALPHA and difference.mean != 0:
        return "gain" if difference.mean > 0 else "loss"
    return "open"


def verdict_on_baseline(contrast: Contrast) -> str:
    """Say what an arm's difference to its baseline means."""
    words = {"gain": "A gain", "loss": "A loss", "open": "No evidence of a gain", "too few": "Too few seeds to say"}
    found = outcome(contrast)
    return f"{words[found]}: {in_words(contrast.differences['AP'])}{_corrected_away(contrast)}."


def verdict_on_control(contrast: Contrast) -> str:
    """Say what a method's difference to its control means."""
    words = {
        "gain": "Better than its control",
        "loss": "Worse than its control",
        "open": "Not told apart from its control",
        "too few": "Too few seeds to say",
    }
    return f"{words[outcome(contrast)]}: {in_words(contrast.differences['AP'])}{_corrected_away(contrast)}."


def _corrected_away(contrast: Contrast) -> str:
    """Say why an interval without 0 is no evidence: of many comparisons, some have one by chance."""
    p = contrast.differences["AP"].p
    if outcome(contrast) != "open" or p is None or p >= ALPHA or contrast.p_holm is None:
        return ""
    return f"; p is {p:.3f} alone, but {contrast.p_holm:.3f} after Holm's correction for the number of comparisons"


def in_words(difference: Difference) -> str:
    """Return a difference with its interval, ``+0.52 AP (95 % interval −0.10 to +1.14, 5 seeds)``."""
    seeds = len(difference.values)
    count = f"{seeds} seed{'s' if seeds > 1 else ''}"
    if difference.t is None:
        return f"{signed(difference.mean)} AP ({count})"
    interval = f"95 % interval {signed(difference.t.low)} to {signed(difference.t.high)}"
    return f"{signed(difference.mean)} AP ({interval}, {count})"


def signed(value: float) -> str:
    """Return a number of AP points with a sign and two decimals."""
    return f"{value:+.2f}".replace("-", "−")
