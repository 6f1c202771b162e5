"""Statistics of paired differences, of few seeds as a rule: pure functions, the same input gives the same answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vfmdistill.errors import InputError

from .findings import Difference, Interval

_FEWEST = 4  # differences that a bootstrap needs: three have 24 resamples with any spread, and cover 82 %
_ALL = 6  # differences of which all n ** n resamples are looked at
_DRAWS = 20_000  # resamples of more than that


def paired_difference(values: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """Return the mean of ``values[seed] - others[seed]`` over the seeds that both have; None if they share none.

    Differences that are all equal have intervals without width, and p is 0, or 1 where they are 0.

    Raises:
        InputError: a value is not finite.
    """
    differences = {seed: values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())}
    _check(list(differences.values()))
    if not differences:
        return None
    numbers = np.array(list(differences.values()))
    mean = float(numbers.mean())
    if len(numbers) == 1:
        return Difference(differences, mean)
    scale = max(abs(some[seed]) for seed in differences for some in (values, others))
    if _deviation(numbers) <= 1e-12 * scale:
        numbers = np.full_like(numbers, mean)  # equal but for rounding
    deviation = _deviation(numbers)
    interval = t_interval(numbers.tolist())
    p = float(mean == 0) if deviation == 0 else float(stats.ttest_1samp(numbers, 0.0).pvalue)
    bootstrap = bootstrap_interval(numbers.tolist()) if len(numbers) >= _FEWEST else None
    return Difference(differences, mean, deviation, interval, bootstrap, p)


def t_interval(differences: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return Student's interval of the mean.

    Raises:
        InputError: fewer than two differences, or one that is not finite.
    """
    _check(differences, fewest=2)
    numbers = np.asarray(differences, dtype=np.float64)
    half = _quantile_t(0.5 + confidence / 2, len(numbers) - 1) * _deviation(numbers) / math.sqrt(len(numbers))
    return Interval(float(numbers.mean() - half), float(numbers.mean() + half))


def bootstrap_interval(differences: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the studentized bootstrap interval (bootstrap-t) of the mean; it is not symmetric where the data are not.

    Of few seeds the percentile bootstrap is too narrow: of normal differences it covers the truth in 84 % of all cases
    for 5 seeds and 88 % for 10, this one in 95 % and 94 %; of exponential ones, which are skewed, in 92 % and 93 %,
    where Student's interval covers 89 %. Up to 6 differences all resamples are taken, of more 20,000 that are always
    the same. Resamples of one value, which have no spread, are left out. Source: Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993, section 12.5.

    Raises:
        InputError: fewer than four differences, or one that is not finite.
    """
    _check(differences, fewest=_FEWEST)
    numbers = np.asarray(differences, dtype=np.float64)
    mean, error = float(numbers.mean()), _deviation(numbers) / math.sqrt(len(numbers))
    if error == 0:
        return Interval(mean, mean)
    resamples = numbers[_places(len(numbers))]
    errors = resamples.std(axis=1, ddof=1) / math.sqrt(len(numbers))
    spread = errors > 1e-9 * error
    low, high = np.quantile(
        (resamples.mean(axis=1)[spread] - mean) / errors[spread], [0.5 - confidence / 2, 0.5 + confidence / 2]
    )
    return Interval(float(mean - high * error), float(mean - low * error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values after Holm's correction for their number, in the same order.

    Below α together they are wrong about any true null hypothesis with a probability of at most α. Source: Holm, A
    Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6, 1979.

    Raises:
        InputError: one is not between 0 and 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise InputError(f"p values {list(p_values)}; expected numbers between 0 and 1.")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def seeds_needed(deviation: float, difference: float = 0.3, power: float = 0.8, alpha: float = 0.05) -> int:
    """Return how many paired seeds show a true difference, by the noncentral t distribution; at least 2.

    Args:
        deviation: standard deviation of the paired differences.
        difference: in the same unit.
        power: probability that the test shows it.
        alpha: of the two-sided test.

    Raises:
        InputError: the deviation is negative or not finite, the difference is 0, or a probability is none.
    """
    if not (math.isfinite(deviation) and deviation >= 0 and difference and 0 < power < 1 and 0 < alpha < 1):
        raise InputError(
            f"deviation {deviation}, difference {difference}, power {power}, alpha {alpha}; expected a deviation from "
            "0, a difference other than 0, and probabilities between 0 and 1."
        )

    if deviation < 1e-6 * abs(difference):  # the noncentral t distribution is not computed so far out
        return 2

    def shows(seeds: int) -> bool:
        limit = _quantile_t(1 - alpha / 2, seeds - 1)
        shift = abs(difference) / deviation * math.sqrt(seeds)
        missed = stats.nct.cdf(limit, seeds - 1, shift) - stats.nct.cdf(-limit, seeds - 1, shift)
        return float(1 - missed) >= power

    high = 2
    while not shows(high):
        high *= 2
    low = max(2, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if shows(middle) else (middle + 1, high)
    return high


def _places(count: int) -> NDArray[np.int64]:
    """Return the places that resamples are taken from, (resamples, count)."""
    if count <= _ALL:
        return np.array(list(itertools.product(range(count), repeat=count)), dtype=np.int64)
    return np.random.default_rng(0).integers(0, count, (_DRAWS, count))


def _deviation(numbers: NDArray[np.float64]) -> float:
    """Return the standard deviation, exactly 0 for values that are equal but for rounding."""
    deviation = float(numbers.std(ddof=1))
    return 0.0 if deviation <= 1e-12 * float(np.abs(numbers).max()) else deviation


def _quantile_t(probability: float, freedom: int) -> float:
    return float(stats.t.ppf(probability, freedom))


def _check(differences: Sequence[float], *, fewest: int = 0) -> None:
    if len(differences) < fewest:
        raise InputError(f"{len(differences)} differences; expected at least {fewest}. Train more seeds.")
    if not all(math.isfinite(value) for value in differences):
        raise InputError(f"differences {list(differences)}; expected finite numbers.")
