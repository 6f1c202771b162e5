from __future__ import annotations

from detectors.ablation.comparison import compare

from .conftest import Ablation

OFF = [40.0, 44.0, 42.0, 41.0, 43.0]
GAIN = [1.2, 0.9, 1.3, 0.8, 1.1]
NOISE = [0.3, -0.4, 0.2, 0.4, -0.3]


def plus(gain: list[float]) -> list[float]:
    return [off + more for off, more in zip(OFF, gain, strict=True)]


def first_line(ablation: Ablation, **gains: list[float]) -> str:
    names = {"vit": "vit+gam", "cnn": "cnn+gam", "control": "shuffled:vit+gam"}
    return compare(ablation({"off": OFF, **{names[key]: plus(gain) for key, gain in gains.items()}})).headline


def test_a_gain_that_the_control_does_not_have(ablation: Ablation) -> None:
    assert first_line(ablation, vit=GAIN, cnn=NOISE, control=NOISE) == (
        "vit+gam gains +1.06 AP (95 % interval +0.80 to +1.32, 5 seeds) over off."
    )


def test_a_control_that_gains_as_much_comes_first(ablation: Ablation) -> None:
    said = first_line(ablation, vit=GAIN, control=[gain + 0.1 for gain in GAIN])
    assert said.startswith(
        "The control shuffled:vit+gam does as well as its teacher: +1.16 AP against +1.06 of vit+gam."
    )
    assert said.endswith(
        "Whether its teacher's semantics did it is open: it is not shown to be better than its control."
    )


def test_a_control_that_gains_a_little_less_comes_first_too(ablation: Ablation) -> None:
    said = first_line(ablation, vit=GAIN, control=[1.3, 0.7, 1.2, 0.9, 0.8])
    assert said.startswith(
        "The control shuffled:vit+gam gains as well, +0.98 AP, and vit+gam (+1.06) is not shown to be better."
    )


def test_a_control_that_gains_less_than_its_method(ablation: Ablation) -> None:
    said = first_line(ablation, vit=[gain + 2 for gain in GAIN], control=GAIN)
    assert said.startswith("The control shuffled:vit+gam gains, +1.06 AP; vit+gam gains more (+3.06). vit+gam gains")
    assert "not shown" not in said


def test_a_control_without_a_method_of_its_own_is_compared_with_all(ablation: Ablation) -> None:
    record = ablation({"off": OFF, "cnn+gam": plus(NOISE), "shuffled:vit+gam": plus([0.3, -0.2, 0.4, 0.5, -0.1])})
    alone = [arm.model_copy(update={"control_of": None}) for arm in record.arms]
    said = compare(record.model_copy(update={"arms": alone})).headline
    assert said.startswith(
        "The control shuffled:vit+gam does as well as any method: +0.18 AP against +0.04 of cnn+gam."
    )


def test_no_gain_is_said_with_the_best(ablation: Ablation) -> None:
    said = first_line(ablation, vit=NOISE, cnn=[noise - 0.2 for noise in NOISE])
    assert said.startswith("No method shows a gain. The best is vit+gam. No evidence of a gain: +0.04 AP")
    assert said.endswith(
        "To show a difference of 0.3 AP takes about 14 paired seeds at this spread, with a power of 80 %."
    )


def test_a_gain_that_is_shown_comes_before_a_larger_one_that_is_not(ablation: Ablation) -> None:
    said = first_line(ablation, vit=GAIN, cnn=[9.0, -3.0, 6.0, -2.0, 8.0])
    assert said.startswith("vit+gam gains +1.06 AP")
    assert said.endswith("It has no control of its own.")


def test_what_is_missing_is_said(ablation: Ablation) -> None:
    points = {"off": OFF, "vit+gam": plus(GAIN)}
    assert compare(ablation(points, missing=[("vit+gam", 5)])).headline.endswith("1 run is missing.")
    assert compare(ablation(points, missing=[("vit+gam", 5), ("off", 5)])).headline.endswith("2 runs are missing.")
