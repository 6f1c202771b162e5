from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from scipy import stats

from detectors.ablation.findings import Interval
from detectors.ablation.statistics import bootstrap_interval, holm, paired_difference, seeds_needed, t_interval
from vfmdistill.errors import InputError

SIMULATIONS = 2000
OFF = {0: 47.1, 1: 51.3, 2: 44.8, 3: 49.0, 4: 46.2}
ON = {0: 48.0, 1: 51.9, 2: 46.6, 3: 48.7, 4: 47.5}


def test_pairs_are_compared_by_seed() -> None:
    found = paired_difference({**ON, 9: 99.0}, {4: 46.2, **OFF, 7: 1.0})
    assert found is not None
    assert list(found.values) == [0, 1, 2, 3, 4]
    expected = stats.ttest_rel(list(ON.values()), list(OFF.values()))
    differences = [ON[seed] - OFF[seed] for seed in OFF]
    assert found.mean == pytest.approx(np.mean(differences), rel=1e-12)
    assert found.deviation == pytest.approx(np.std(differences, ddof=1), rel=1e-12)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.t == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-12)
    assert found.bootstrap == bootstrap_interval(list(found.values.values()))


def test_differences_that_are_rounding_are_none() -> None:
    found = paired_difference({0: 0.1 + 0.2, 1: 0.3, 2: 0.3}, dict.fromkeys(range(3), 0.3))
    assert found is not None
    assert found.deviation == 0.0
    assert [seeds_needed(10.0**-power) for power in (1, 6, 7, 9, 12, 300)] == [4, 2, 2, 2, 2, 2]


def test_too_few_pairs_have_no_interval() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    one = paired_difference({0: 3.0}, {0: 1.0, 1: 5.0})
    assert one is not None
    assert (one.mean, one.deviation, one.t, one.bootstrap, one.p) == (2.0, None, None, None, None)
    three = paired_difference(dict(enumerate([1.0, 2.0, 4.0])), dict.fromkeys(range(3), 0.0))
    assert three is not None
    assert three.t is not None
    assert three.bootstrap is None


@pytest.mark.parametrize(("value", "p"), [(0.7, 0.0), (0.0, 1.0)])
def test_differences_that_are_all_equal(value: float, p: float) -> None:
    # 0.1 + 0.7 − 0.1 and 0.2 + 0.7 − 0.2 differ by rounding.
    found = paired_difference({seed: seed / 10 + value for seed in range(5)}, {seed: seed / 10 for seed in range(5)})
    assert found is not None
    assert (found.deviation, found.p) == (0.0, p)
    assert found.t == pytest.approx((value, value), abs=1e-15)
    assert found.bootstrap == pytest.approx((value, value), abs=1e-15)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_students_interval_is_that_of_scipy(confidence: float) -> None:
    numbers = np.random.default_rng(3).normal(0.4, 2.0, 7)
    expected = stats.ttest_1samp(numbers, 0.0).confidence_interval(confidence)
    assert t_interval(numbers.tolist(), confidence) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_the_bootstrap_looks_at_every_resample_of_few() -> None:
    # Of four differences there are 256 resamples; those of one value alone say nothing of the spread.
    numbers = np.array([0.1, 0.9, 1.4, 3.0])
    mean, error = numbers.mean(), stats.sem(numbers)
    scores = []
    for number in range(256):
        resample = numbers[[number // 64 % 4, number // 16 % 4, number // 4 % 4, number % 4]]
        if len(set(resample)) > 1:
            scores.append((resample.mean() - mean) / stats.sem(resample))
    low, high = np.quantile(scores, [0.025, 0.975])
    assert len(scores) == 252
    assert bootstrap_interval(numbers.tolist()) == pytest.approx((mean - high * error, mean - low * error), rel=1e-9)


def test_the_bootstrap_is_repeatable_and_follows_scale_and_offset() -> None:
    numbers = np.random.default_rng(5).exponential(1.0, 9)
    found = bootstrap_interval(numbers.tolist())
    assert bootstrap_interval(numbers.tolist()) == found
    assert bootstrap_interval((2 * numbers + 1).tolist()) == pytest.approx((2 * found.low + 1, 2 * found.high + 1))
    # Not symmetric: the long tail of the data is to the right, and so is the interval's.
    assert found.high - numbers.mean() > 1.2 * (numbers.mean() - found.low)


@pytest.mark.parametrize("interval", [t_interval, bootstrap_interval])
@pytest.mark.parametrize("seeds", [5, 10])
def test_intervals_cover_a_known_effect(interval: Callable[[Sequence[float]], Interval], seeds: int) -> None:
    # Runs of a seed share what the seed does to both (± 5 AP); the effect is 0.4 AP, its own spread 1.
    draws = np.random.default_rng(seeds)
    covered = 0
    for _ in range(SIMULATIONS):
        shared = draws.normal(45, 5, seeds)
        off = shared + draws.normal(0, 0.5**0.5, seeds)
        on = shared + 0.4 + draws.normal(0, 0.5**0.5, seeds)
        low, high = interval((on - off).tolist())
        covered += low <= 0.4 <= high
    assert 0.93 <= covered / SIMULATIONS <= 0.97


def test_p_values_are_uniform_without_an_effect() -> None:
    draws = np.random.default_rng(1)
    found = [paired_difference(dict(enumerate(draws.normal(size=4))), dict(enumerate(draws.normal(size=4))))
             for _ in range(500)]  # fmt: skip
    assert stats.kstest([one.p for one in found if one is not None and one.p is not None], "uniform").pvalue > 0.05


def test_holm_by_hand() -> None:
    # Holm 1979: the smallest of four times 4, the next times 3 …, never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_errors_of_all_arms_together_below_alpha() -> None:
    draws = np.random.default_rng(2)
    wrong = sum(min(holm(draws.uniform(size=5).tolist())) < 0.05 for _ in range(SIMULATIONS))
    assert 0.04 <= wrong / SIMULATIONS <= 0.06
    alone = sum(draws.uniform(size=5).min() < 0.05 for _ in range(SIMULATIONS))
    assert alone / SIMULATIONS > 0.2


@pytest.mark.parametrize("deviation", [0.2, 0.5])
def test_the_seeds_that_are_needed_show_the_effect(deviation: float) -> None:
    seeds = seeds_needed(deviation)
    draws = np.random.default_rng(0)

    def shown(count: int) -> float:
        samples = draws.normal(0.3, deviation, (4000, count))
        return float((stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05).mean())

    assert shown(seeds) > 0.78
    assert shown(seeds - 1) < 0.82


def test_seeds_needed_of_known_tables() -> None:
    # Cohen, Statistical Power Analysis, 1988: a paired d of 0.5 takes 34 pairs at 80 %, one of 0.2 takes 199.
    assert seeds_needed(0.6, 0.3) == 34
    assert seeds_needed(1.0, 0.2) == 199
    assert seeds_needed(1.0, -0.2) == 199
    assert seeds_needed(0.0) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: paired_difference({0: float("nan")}, {0: 1.0}),
        lambda: t_interval([1.0]),
        lambda: bootstrap_interval([1.0, 2.0, 3.0]),
        lambda: bootstrap_interval([1.0, 2.0, 3.0, float("inf")]),
        lambda: holm([0.5, 1.5]),
        lambda: seeds_needed(-1.0),
        lambda: seeds_needed(1.0, 0.0),
        lambda: seeds_needed(float("nan")),
        lambda: seeds_needed(1.0, power=1.0),
    ],
)
def test_what_cannot_be_computed_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="expected"):
        call()
