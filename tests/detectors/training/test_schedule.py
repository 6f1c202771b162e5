"""Factors and decays pinned to what the authors' code computes (RT-DETRv4 commit df44122, 118,287 images, batch 32)."""

import pytest

from detectors.training.recipe import recipe_for
from detectors.training.schedule import ema_decay, flat_cosine, learning_rate_factor

STEPS = 3697  # an epoch

RTDETRV4_S = {
    0: 0.0, 1: 2.5e-07, 1000: 0.25, 2000: 1.0, 2001: 1.0, 236608: 1.0, 236609: 0.999999999971217,
    362306: 0.6674302345112082, 443639: 0.500000000028783, 443640: 0.5, 488003: 0.5,
}  # fmt: skip
RTDETRV4_L = {
    0: 0.0, 1000: 0.25, 107213: 1.0, 107214: 0.9999999997953215, 160819: 0.6091741647471494,
    184849: 0.5000000002046785, 184850: 0.5, 214425: 0.5,
}  # fmt: skip

DEIM_N = {0: 0.0, 1: 2.5e-07, 1000: 0.25, 2000: 1.0, 2001: 1.0, 547155: 1.0, 547156: 1.0, 591519: 1.0}
DFINE_S = {0: 0.0, 1: 4e-06, 500: 1.0, 501: 1.0, 1000: 1.0, 488003: 1.0}
DEIM_RTDETRV2_R18 = {
    0: 0.0, 1: 2.5e-07, 1000: 0.25, 2000: 1.0, 236607: 1.0, 236608: 1.0, 236609: 0.9999999999678664,
    340124: 0.7278010261692663, 432548: 0.5000000000321336, 432549: 0.5, 443639: 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("rtdetrv4_s", RTDETRV4_S),
        ("rtdetrv4_l", RTDETRV4_L),
        ("deim_n", DEIM_N),
        ("dfine_s", DFINE_S),
        ("deim_rtdetrv2_r18", DEIM_RTDETRV2_R18),
    ],
)
def test_learning_rate_factor_of_the_published_runs(model: str, expected: dict[int, float]) -> None:
    recipe = recipe_for(model)
    for step, factor in expected.items():
        assert learning_rate_factor(recipe, step, STEPS) == pytest.approx(factor, rel=1e-12), step


def test_rtdetrv2_rises_in_a_line() -> None:
    recipe = recipe_for("rtdetrv2_r50")
    assert [learning_rate_factor(recipe, step, STEPS) for step in (0, 500, 1000, 2000, 200_000)] == [0, 0.25, 0.5, 1, 1]


def test_without_warmup_the_first_step_has_the_full_rate() -> None:
    assert flat_cosine(0, total=10, warmup=0, flat=5, plain=0, final=0.5) == 1.0


def test_no_flat_part_and_no_plain_part_is_a_whole_cosine() -> None:
    factors = [flat_cosine(step, total=100, warmup=0, flat=0, plain=0, final=0.0) for step in range(101)]
    assert factors[50] == pytest.approx(0.5)
    assert factors[100] == 0.0
    assert factors == sorted(factors, reverse=True)


def test_ema_decay_of_the_published_runs() -> None:
    expected = {
        1: 0.0009994002166083156, 10: 0.00994917123420681, 100: 0.09515306570584407,
        1000: 0.6320573467726748, 5000: 0.9931627267956145, 100000: 0.9999,
    }  # fmt: skip
    for updates, decay in expected.items():
        assert ema_decay(updates, decay=0.9999, warmup=1000) == pytest.approx(decay, rel=1e-12)
