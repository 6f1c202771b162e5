from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from vfmdistill import FixedWeight, GradientModulator, InputError, Update, WeightsError

S = (5.0, 11.0, 1.0, 20.0)  # weight, rho, delta, default_weight as published for RT-DETRv4-S, M, L, X
M = (5.0, 3.5, 0.25, 15.0)
L = (15.0, 2.0, 0.1, 15.0)
X = (20.0, 2.0, 0.25, 20.0)
INF, NAN = math.inf, math.nan


def r(aim: float, share: float) -> float:
    """The factor of rule 4 in whole percents: t(1 − p) / (p(1 − t))."""
    return aim * (100 - share) / (share * (100 - aim))


TABLE: list[tuple[tuple[float, ...], list[float], bool, float, str]] = [
    # settings, shares, after finish_adapting(), λ afterwards, reason
    # inside the window and exactly on its bounds
    (S, [11.0], False, 5.0, "unchanged"),
    (S, [10.0], False, 5.0, "unchanged"),
    (S, [12.0], False, 5.0, "unchanged"),
    (S, [8.0, 14.0], False, 5.0, "unchanged"),  # only the mean counts
    (M, [3.25], False, 5.0, "unchanged"),
    (M, [3.75], False, 5.0, "unchanged"),
    (L, [2.0], False, 15.0, "unchanged"),
    (L, [1.9], False, 15.0, "unchanged"),
    (L, [2.1], False, 15.0, "unchanged"),
    (X, [2.25], False, 20.0, "unchanged"),
    # below: aims at the upper bound
    (S, [9.0], False, 5.0 * r(12, 9), "raised"),
    (S, [9.999], False, 5.0 * r(12, 9.999), "raised"),
    (S, [6.0, 10.0], False, 5.0 * r(12, 8), "raised"),
    (S, [5.0], False, 5.0 * r(12, 5), "raised"),
    (M, [3.0], False, 5.0 * r(3.75, 3), "raised"),
    (L, [1.0], False, 15.0 * r(2.1, 1), "raised"),
    (X, [0.5], False, 20.0 * r(2.25, 0.5), "raised"),
    # above: aims at the lower bound
    (S, [12.001], False, 5.0 * r(10, 12.001), "lowered"),
    (S, [20.0], False, 5.0 * r(10, 20), "lowered"),
    (S, [50.0], False, 5.0 / 9, "lowered"),
    (M, [7.0], False, 5.0 * r(3.25, 7), "lowered"),
    (L, [3.0], False, 15.0 * r(1.9, 3), "lowered"),
    (X, [10.0], False, 20.0 * r(1.75, 10), "lowered"),
    # clamped to ten times, floored at a tenth
    (S, [1.0], False, 50.0, "raised"),
    (S, [1e-5], False, 50.0, "raised"),
    (S, [1.3453], False, 5.0 * r(12, 1.3453), "raised"),  # r = 10 lies at 1.34529 %
    (S, [1.3452], False, 50.0, "raised"),
    (S, [90.0], False, 0.5, "lowered"),
    (S, [100.0], False, 0.5, "lowered"),
    (L, [60.0], False, 1.5, "lowered"),
    (S, [52.6], False, 5.0 * r(10, 52.6), "lowered"),  # r = 0.1 lies at 52.63 %
    (S, [52.7], False, 0.5, "lowered"),
    # no gradient
    (S, [0.0], False, 20.0, "no_gradient"),
    (S, [9.9e-7], False, 20.0, "no_gradient"),
    (S, [1e-6], False, 50.0, "raised"),
    (X, [0.0, 0.0], False, 20.0, "no_gradient"),
    (S, [0.0, 22.0], False, 5.0, "unchanged"),  # a zero step counts in the mean
    # not finite: left out
    (S, [NAN, 11.0, INF], False, 5.0, "unchanged"),
    (S, [-INF, 9.0], False, 5.0 * r(12, 9), "raised"),
    (S, [NAN], False, 5.0, "no_observation"),
    (S, [], False, 5.0, "no_observation"),
    # final phase
    (S, [11.0], True, 20.0, "final_phase"),
    (S, [50.0], True, 20.0, "final_phase"),
    (M, [1.0], True, 15.0, "final_phase"),
    (L, [0.0], True, 15.0, "no_gradient"),
    (S, [], True, 20.0, "final_phase"),
    (S, [NAN], True, 20.0, "final_phase"),
    # a λ that is too small to scale
    ((1e-6, 11.0, 1.0, 20.0), [5.0], False, 1e-6, "unchanged"),
    ((1.1e-6, 11.0, 1.0, 20.0), [50.0], False, 1.1e-6 / 9, "lowered"),
    ((1e-6, 11.0, 1.0, 20.0), [0.0], False, 20.0, "no_gradient"),
    # a window without width
    ((5.0, 11.0, 0.0, 20.0), [11.0], False, 5.0, "unchanged"),
    ((5.0, 11.0, 0.0, 20.0), [10.0], False, 5.0 * r(11, 10), "raised"),
]


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize(("settings", "shares", "final", "expected", "reason"), TABLE)
def test_table(
    settings: tuple[float, ...], shares: list[float], final: bool, expected: float, reason: str, as_tensor: bool
) -> None:
    modulator = GradientModulator(*settings)
    for share in shares:
        modulator.observe(torch.tensor(share, dtype=torch.float64) if as_tensor else share)
    if final:
        modulator.finish_adapting()
    update = modulator.update()
    assert update.previous == settings[0]
    assert update.reason == reason
    assert update.weight == modulator.weight == pytest.approx(expected, rel=1e-12)
    finite = [share for share in shares if math.isfinite(share)]
    assert update.share == (pytest.approx(sum(finite) / len(finite)) if finite else None)
    assert modulator.update().reason in ("no_observation", "final_phase")  # the shares are used up


def test_literal_numbers() -> None:
    # 5 · (0.12 · 0.91) / (0.09 · 0.88) and 5 · (0.10 · 0.80) / (0.20 · 0.90), worked out by hand
    for share, expected in ((9.0, 6.893939393939394), (20.0, 2.2222222222222223)):
        modulator = GradientModulator(*S)
        modulator.observe(share)
        assert modulator.update().weight == pytest.approx(expected, rel=1e-14)


def test_rule_one_comes_before_the_final_phase_and_updates_follow_each_other() -> None:
    modulator = GradientModulator(*S)
    weights = []
    for share in (9.0, 11.0, 30.0, 0.0, 13.0):
        modulator.observe(share)
        weights.append(modulator.update().weight)
    raised = 5 * r(12, 9)
    assert weights == pytest.approx([raised, raised, raised * r(10, 30), 20, 20 * r(10, 13)], rel=1e-12)


def test_auto_measures_then_adapts() -> None:
    modulator = GradientModulator(weight=8.0, calibration_updates=2)
    modulator.observe(4.0)
    modulator.observe(6.0)
    assert modulator.update() == Update(8.0, 8.0, 5.0, "calibrating")
    assert modulator.rho is None
    assert modulator.update().reason == "no_observation"  # measures nothing, so it is not one of the two
    modulator.observe(11.0)
    assert modulator.update() == Update(8.0, 8.0, 11.0, "calibrated")
    assert (modulator.rho, modulator.delta) == pytest.approx((7.0, 0.7))  # the mean of the three steps, a tenth of it
    modulator.observe(7.6)
    assert modulator.update().reason == "unchanged"
    modulator.observe(8.0)
    assert modulator.update().weight == pytest.approx(8 * r(6.3, 8))


def test_auto_goes_on_measuring_without_gradient_and_stops_in_the_final_phase() -> None:
    modulator = GradientModulator(weight=8.0, default_weight=3.0, calibration_updates=1)
    modulator.observe(0.0)
    assert modulator.update() == Update(8.0, 8.0, 0.0, "no_gradient")
    assert modulator.rho is None
    modulator.finish_adapting()
    modulator.observe(4.0)
    assert modulator.update() == Update(8.0, 3.0, 4.0, "final_phase")
    assert modulator.rho is None


def test_auto_where_the_tap_has_the_whole_gradient() -> None:
    modulator = GradientModulator(calibration_updates=1)
    for _ in range(3):
        modulator.observe(100.0)
        assert modulator.update().weight == 5.0
    assert (modulator.rho, modulator.delta) == (100.0, 0.0)
    modulator.observe(99.0)
    assert modulator.update().weight == 50.0


def test_default_weight_is_the_first_weight_and_delta_a_tenth() -> None:
    modulator = GradientModulator(weight=7.0, rho=20.0)
    assert modulator.delta == pytest.approx(2.0)
    modulator.observe(0.0)
    assert modulator.update().weight == 7.0


def test_mean_of_an_epoch_is_exact() -> None:
    modulator = GradientModulator(*S)
    share = torch.tensor(10.1)  # float32, as gradient_share gives it
    for _ in range(5000):
        modulator.observe(share)
    assert modulator.update().share == pytest.approx(share.item(), rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight": 0.0}, "weight=0.0"),
        ({"weight": NAN}, "weight=nan"),
        ({"default_weight": -1.0}, "default_weight=-1.0"),
        ({"rho": 0.0}, "rho=0.0"),
        ({"rho": 100.0}, "rho=100.0"),
        ({"rho": NAN}, "rho=nan"),
        ({"rho": 2.0, "delta": 2.0}, "0 < rho - delta"),
        ({"rho": 95.0, "delta": 5.0}, "rho \\+ delta < 100"),
        ({"rho": 11.0, "delta": -1.0}, "delta=-1.0"),
        ({"rho": "auto", "delta": 1.0}, "rho='auto' without delta"),
        ({"rho": "automatic"}, "rho='automatic'"),
        ({"calibration_updates": 0}, "calibration_updates=0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GradientModulator(**arguments)


@pytest.mark.parametrize("kind", [GradientModulator, lambda: FixedWeight(1.0)])
def test_a_share_is_one_number(kind: Any) -> None:
    with pytest.raises(InputError, match="0-dim"):
        kind().observe(torch.zeros(2))


@pytest.mark.parametrize("settings", [{}, {"rho": 11.0, "delta": 1.0}])
@pytest.mark.parametrize("steps", [0, 1, 4, 5, 8, 11])
@pytest.mark.parametrize("final", [False, True])
def test_resumes_exactly_through_json(settings: dict[str, Any], steps: int, final: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shares = [100 * torch.rand((), generator=generator) for _ in range(24)]
    shares[2] = torch.tensor(NAN)

    def run(modulator: GradientModulator, start: int, stop: int) -> list[Update]:
        updates = []
        for step in range(start, stop):
            modulator.observe(shares[step])
            if step % 4 == 3:
                updates.append(modulator.update())
        return updates

    modulator = GradientModulator(7.0, **settings)
    run(modulator, 0, steps)
    if final:
        modulator.finish_adapting()
    resumed = GradientModulator(1.0)
    resumed.load_state_dict(json.loads(json.dumps(modulator.state_dict())))
    assert resumed.state_dict() == modulator.state_dict()
    assert run(resumed, steps, 24) == run(modulator, steps, 24)


def test_fixed_weight_reports_the_share_and_stays() -> None:
    fixed = FixedWeight(3)
    fixed.observe(torch.tensor(4.0))
    fixed.observe(NAN)
    resumed = FixedWeight(0.0)
    resumed.load_state_dict(json.loads(json.dumps(fixed.state_dict())))
    fixed.finish_adapting()
    assert fixed.update() == resumed.update() == Update(3.0, 3.0, 4.0, "unchanged")
    assert fixed.update() == Update(3.0, 3.0, None, "no_observation")
    with pytest.raises(InputError, match="weight=-1"):
        FixedWeight(-1)


def test_repr_can_be_pasted() -> None:
    given, auto = GradientModulator(*S), GradientModulator(8.0, default_weight=3.0, calibration_updates=1)
    assert repr(given) == "GradientModulator(weight=5.0, rho=11.0, delta=1.0, default_weight=20.0)"
    assert repr(auto) == "GradientModulator(weight=8.0, rho='auto', default_weight=3.0, calibration_updates=1)"
    assert repr(FixedWeight(3)) == "FixedWeight(3.0)"
    for modulator in (given, auto):
        assert eval(repr(modulator)).state_dict() == modulator.state_dict()
        modulator.observe(9.0)
        modulator.update()
    assert given.weight == pytest.approx(5 * r(12, 9))
    assert repr(given) == f"GradientModulator(weight={given.weight!r}, rho=11.0, delta=1.0, default_weight=20.0)"
    assert repr(auto) == "GradientModulator(weight=8.0, rho=9.0, delta=0.9, default_weight=3.0)"
    again = eval(repr(given))
    for modulator in (given, again):
        modulator.observe(20.0)
    assert again.update() == given.update()


def test_states_without_the_shares_over_time_are_refused() -> None:
    modulator = GradientModulator()
    state = modulator.state_dict()
    for key in ("share_spans", "calibration_spans"):
        with pytest.raises(WeightsError, match="Attach with the modulator that the state was saved from"):
            modulator.load_state_dict({name: value for name, value in state.items() if name != key})
    assert modulator.state_dict() == state


def test_states_of_another_kind_are_refused() -> None:
    fixed, adaptive = FixedWeight(1.0), GradientModulator()
    with pytest.raises(WeightsError, match=r"'FixedWeight' modulator.*expected one of a 'GradientModulator'"):
        adaptive.load_state_dict(fixed.state_dict())
    with pytest.raises(WeightsError, match="expected one of a 'FixedWeight'"):
        fixed.load_state_dict(adaptive.state_dict())
    with pytest.raises(WeightsError, match="None modulator"):
        fixed.load_state_dict({})
