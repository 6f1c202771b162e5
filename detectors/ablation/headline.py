"""The first thing that an ablation says: what a sceptic would ask first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .findings import Contrast
from .verdicts import in_words, outcome, signed


def headline(
    kinds: Mapping[str, str], contrasts: Sequence[Contrast], controls: Sequence[Contrast], missing: int
) -> str:
    """Return controls that do as well as their methods, then the best method, then what is missing.

    A control does as well where its own mean difference is at least the method's, or where it shows a gain and the
    method is not shown to be better than it.

    Args:
        kinds: of all arms ("off", "method", "control").
        contrasts: of all arms with a teacher against their baselines.
        controls: methods against their controls.
        missing: number of runs that are not done.
    """
    by_arm = {contrast.arm: contrast for contrast in contrasts}
    sentences = [*_of_controls(kinds, by_arm, controls), _of_methods(kinds, contrasts, controls)]
    if missing:
        sentences.append(f"{missing} run{'s are' if missing > 1 else ' is'} missing.")
    return " ".join(sentences)


def _of_controls(kinds: Mapping[str, str], by_arm: Mapping[str, Contrast], controls: Sequence[Contrast]) -> list[str]:
    sentences = []
    paired = {pair.other: pair for pair in controls}
    for name, control in by_arm.items():
        if kinds[name] != "control":
            continue
        own, pair = signed(control.differences["AP"].mean), paired.get(name)
        method = by_arm.get(pair.arm) if pair is not None else None
        gains = outcome(control) == "gain"
        if pair is None or method is None:
            best = _best([by_arm[arm] for arm in by_arm if kinds[arm] == "method"])
            if best is not None and control.differences["AP"].mean >= best.differences["AP"].mean:
                theirs = signed(best.differences["AP"].mean)
                sentences.append(
                    f"The control {name} does as well as any method: {own} AP against {theirs} of {best.arm}."
                )
            elif gains:
                sentences.append(f"The control {name} gains: {in_words(control.differences['AP'])}.")
            continue
        theirs = signed(method.differences["AP"].mean)
        if pair.differences["AP"].mean <= 0:
            sentences.append(
                f"The control {name} does as well as its teacher: {own} AP against {theirs} of {method.arm}."
            )
        elif gains and outcome(pair) != "gain":
            sentences.append(
                f"The control {name} gains as well, {own} AP, and {method.arm} ({theirs}) is not shown to be better."
            )
        elif gains:
            sentences.append(f"The control {name} gains, {own} AP; {method.arm} gains more ({theirs}).")
    return sentences


def _of_methods(kinds: Mapping[str, str], contrasts: Sequence[Contrast], controls: Sequence[Contrast]) -> str:
    methods = [contrast for contrast in contrasts if kinds[contrast.arm] == "method"]
    best = _best([contrast for contrast in methods if outcome(contrast) == "gain"])
    if best is None:
        best = _best(methods)
        if best is None:
            return "No method was compared."
        sentence = f"No method shows a gain. The best is {best.arm}. {best.verdict}"
        if best.seeds_needed is not None:
            sentence += (
                f" To show a difference of 0.3 AP takes about {best.seeds_needed:,} paired seeds at this spread, "
                "with a power of 80 %."
            )
        return sentence
    sentence = f"{best.arm} gains {in_words(best.differences['AP'])} over {best.other}."
    pairs = [pair for pair in controls if pair.arm == best.arm]
    if any(outcome(pair) != "gain" for pair in pairs):
        sentence += " Whether its teacher's semantics did it is open: it is not shown to be better than its control."
    elif not pairs:
        sentence += " It has no control of its own."
    return sentence


def _best(contrasts: Sequence[Contrast]) -> Contrast | None:
    return max(contrasts, key=lambda contrast: contrast.differences["AP"].mean, default=None)
