from __future__ import annotations

import pytest

from detectors.ablation.findings import Contrast
from detectors.ablation.statistics import paired_difference
from detectors.ablation.verdicts import in_words, outcome, signed, verdict_on_baseline, verdict_on_control


def contrast(differences: list[float], p_holm: float | None, seeds_needed: int | None = 120) -> Contrast:
    found = paired_difference(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
    assert found is not None
    return Contrast("vit+gam", "off", {"AP": found}, {}, p_holm, seeds_needed, "")


GAIN = contrast([0.9, 1.1, 1.0, 1.2], 0.01)
LOSS = contrast([-0.9, -1.1, -1.0, -1.2], 0.01)
OPEN = contrast([0.9, -0.5, 0.3], 0.051)
FEW = contrast([0.9, 1.0], 0.001)


@pytest.mark.parametrize(("given", "expected"), [(GAIN, "gain"), (LOSS, "loss"), (OPEN, "open"), (FEW, "too few")])
def test_the_outcome(given: Contrast, expected: str) -> None:
    assert outcome(given) == expected


def test_holms_p_decides_and_not_the_interval() -> None:
    assert GAIN.differences["AP"].t is not None
    assert GAIN.differences["AP"].t.low > 0
    assert outcome(contrast([0.9, 1.1, 1.0, 1.2], 0.2)) == "open"


def test_verdicts_in_words() -> None:
    assert verdict_on_baseline(OPEN) == "No evidence of a gain: +0.23 AP (95 % interval −1.51 to +1.98, 3 seeds)."
    assert verdict_on_baseline(GAIN) == "A gain: +1.05 AP (95 % interval +0.84 to +1.26, 4 seeds)."
    assert verdict_on_baseline(LOSS).startswith("A loss: −1.05 AP")
    assert verdict_on_baseline(FEW).startswith("Too few seeds to say: +0.95 AP")


def test_an_interval_without_zero_that_is_no_evidence_is_explained() -> None:
    corrected = contrast([0.9, 1.1, 1.0, 1.2], 0.2)
    why = "; p is 0.001 alone, but 0.200 after Holm's correction for the number of comparisons."
    assert verdict_on_baseline(corrected) == f"No evidence of a gain: {in_words(corrected.differences['AP'])}{why}"
    assert verdict_on_control(corrected).endswith(why)


def test_controls_have_words_of_their_own() -> None:
    assert verdict_on_control(GAIN).startswith("Better than its control: +1.05")
    assert verdict_on_control(LOSS).startswith("Worse than its control: −1.05")
    assert (
        verdict_on_control(OPEN) == "Not told apart from its control: +0.23 AP (95 % interval −1.51 to +1.98, 3 seeds)."
    )


def test_numbers_have_a_sign() -> None:
    assert (signed(0.3), signed(-1.234), signed(0.0)) == ("+0.30", "−1.23", "+0.00")
    assert in_words(contrast([0.5], None).differences["AP"]) == "+0.50 AP (1 seed)"
