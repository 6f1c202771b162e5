from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import statistics
from typing import Any

import pytest
import torch
from torch import distributed
from torch.overrides import TorchFunctionMode

from vfmdistill import GradientModulator, Update
from vfmdistill.calibration import Calibration
from vfmdistill.mean_share import MeanShare

READS = {"item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__"}
NAN = math.nan


def calibrated(shares: list[float], updates: int = 1) -> GradientModulator:
    modulator = GradientModulator(5.0, calibration_updates=updates)
    length = len(shares) // updates
    for first in range(0, len(shares), length):
        for share in shares[first : first + length]:
            modulator.observe(torch.tensor(share, dtype=torch.float64))
        modulator.update()
    return modulator


def report(modulator: GradientModulator) -> Calibration:
    assert modulator.calibration is not None
    return modulator.calibration


def test_figures_by_hand() -> None:
    modulator = calibrated([12.0, 10.0, NAN, 9.0, 8.0, 8.0, 8.0, 7.0, 6.0], updates=3)
    found = report(modulator)
    assert found.shares == (12, 10, 9, 8, 8, 8, 7, 6)
    assert found.steps == 8
    assert (found.rho, found.delta) == (modulator.rho, modulator.delta) == pytest.approx((8.5, 0.85))
    assert found.trend == 6.5 - 11  # last two points, first two points
    assert found.spread == pytest.approx(math.sqrt((12.25 + 2.25 + 0.25 + 3 * 0.25 + 2.25 + 6.25) / 8))
    assert not found.settled
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.rho = 1.0  # type: ignore[misc]


def test_none_before_and_without_calibration() -> None:
    given = GradientModulator(5.0, 11.0, 1.0)
    auto = GradientModulator(5.0, calibration_updates=2)
    for modulator in (given, auto):
        modulator.observe(11.0)
        modulator.update()
        assert modulator.calibration is None
    auto.observe(10.0)
    assert auto.update().reason == "calibrated"
    assert report(auto).shares == (11.0, 10.0)
    auto.observe(90.0)
    auto.update()
    assert report(auto).shares == (11.0, 10.0)  # what comes later is no part of it


@pytest.mark.parametrize(("steps", "length"), [(20, 1), (21, 2), (40, 2), (41, 4), (79, 4), (1000, 64)])
def test_points_are_means_of_equally_many_consecutive_steps(steps: int, length: int) -> None:
    found = report(calibrated([(1 + step) / 100 for step in range(steps)]))
    assert 10 <= len(found.shares) <= 20
    for index, share in enumerate(found.shares[:-1]):
        assert share == pytest.approx((1 + index * length + (length - 1) / 2) / 100)
    rest = steps - length * (len(found.shares) - 1)
    assert found.shares[-1] == pytest.approx((1 + steps - rest + (rest - 1) / 2) / 100)
    assert length / 2 <= rest < 1.5 * length  # a short end is a part of the point before
    assert found.steps == steps
    assert found.rho == pytest.approx((1 + steps) / 200)
    assert found.delta == pytest.approx(found.rho / 10)


def test_shares_that_are_not_finite_are_no_part_of_the_curve() -> None:
    found = report(calibrated([5.0, NAN, NAN, 7.0] + [NAN] * 60 + [9.0] * 16))
    assert found.steps == 18
    assert found.shares == (6.0, 9.0, 9.0, 9.0, 9.0)  # of 4 steps each
    assert found.rho == pytest.approx((5 + 7 + 16 * 9) / 18)


def test_memory_and_state_do_not_grow_with_the_steps() -> None:
    shares = MeanShare()
    for step in range(3000):
        shares.add(float(step % 7))
        assert len(shares._ended) < 20
    assert len(json.dumps(shares.state_dict())) < 1000
    assert sum(span.total for span in shares.take()) == sum(step % 7 for step in range(3000))


def test_observing_reads_nothing_from_the_device_however_long_the_epoch() -> None:
    class NoReads(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert func.__name__ not in READS, func.__name__
            return func(*args, **(kwargs or {}))

    modulator, share = GradientModulator(5.0, calibration_updates=1), torch.tensor(4.0)
    with NoReads():
        with pytest.raises(AssertionError, match="tolist"):
            torch.ones(2).tolist()
        for _ in range(50):
            modulator.observe(share)
    assert modulator.update() == Update(5.0, 5.0, 4.0, "calibrated")


@pytest.mark.parametrize("cut", [0, 1, 19, 20, 21, 45, 90, 100])
@pytest.mark.parametrize("way", ["json", "pickle", "deepcopy"])
def test_goes_on_exactly_from_anywhere(cut: int, way: str) -> None:
    generator = torch.Generator().manual_seed(0)
    shares = (100 * torch.rand(100, generator=generator)).tolist()

    def run(modulator: GradientModulator, steps: range) -> None:
        for step in steps:
            modulator.observe(torch.tensor(shares[step]))
            if step % 50 == 49:
                modulator.update()

    modulator = GradientModulator(5.0)
    run(modulator, range(cut))
    if way == "json":
        resumed = GradientModulator(1.0, calibration_updates=7)
        resumed.load_state_dict(json.loads(json.dumps(modulator.state_dict())))
    else:
        resumed = pickle.loads(pickle.dumps(modulator)) if way == "pickle" else copy.deepcopy(modulator)
    for each in (modulator, resumed):
        run(each, range(cut, 100))
    assert report(resumed) == report(modulator)
    assert len(report(modulator).shares) == 26  # 13 of each update: 12 of 4 steps, and 2 that are left
    assert resumed.state_dict() == modulator.state_dict()


def test_report_says_what_was_seen_and_chosen() -> None:
    lines = str(report(calibrated([10.0, 10.4, 9.6, 10.0] * 8))).splitlines()
    assert lines[0] == (
        "calibrated over 32 steps: ρ = 10 %, δ = 1 %; from here on λ keeps the share between 9 and 11 %"
    )
    assert lines[1:3] == ["share over time in percent:", "  " + " ".join(["10.2", "9.8"] * 8)]
    assert lines[3] == "spread 0.2 %, trend +0 percent points from the first to the last quarter"
    assert len(lines) == 4


def test_report_of_two_updates_has_two_rows_and_no_share_is_lost() -> None:
    found = report(calibrated([9.9] * 20 + [10.1] * 20, updates=2))
    assert str(found).splitlines()[2:4] == ["  " + " ".join(["9.9"] * 20), "  " + " ".join(["10.1"] * 20)]
    assert statistics.fmean(found.shares) == pytest.approx(found.rho)


@pytest.mark.parametrize(("last", "hint"), [(10.9, False), (11.2, True), (9.1, False), (8.8, True)])
def test_report_hints_where_the_trend_is_larger_than_delta(last: float, hint: bool) -> None:
    found = report(calibrated([10.0] * 6 + [last] * 2))
    assert found.trend == pytest.approx(last - 10)
    assert found.settled is not hint
    assert ("more calibration_updates" in str(found)) is hint


def test_a_single_share_has_no_trend() -> None:
    found = report(calibrated([100.0]))
    assert (found.trend, found.spread, found.rho, found.delta) == (0, 0, 100, 0)
    assert "ρ = 100 %" in str(found)


def test_processes_are_brought_to_the_same_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one process saw more steps than another, both get means over both, by spans of the longer kind."""
    processes = [MeanShare(), MeanShare()]
    for step in range(24):
        processes[0].add(1.0 + step)
    for step in range(3):
        processes[1].add((3.0, NAN, 8.0)[step])
    told: list[Any] = []

    def gather(parts: list[Any], own: Any) -> None:
        parts[:] = told or [own, own]

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    told = [(each._length, each._read()) for each in processes]
    taken = [each.take() for each in processes]
    assert taken[0] == taken[1]
    assert len(taken[0]) == 12  # of 2 steps
    assert taken[0][0] == ((1 + 2 + 3) / 2, 1.5)
    assert taken[0][1] == ((3 + 4 + 8) / 2, 1.5)
    assert taken[0][2] == ((5 + 6) / 2, 1.0)
