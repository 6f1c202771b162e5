from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import Tensor, nn

from vfmdistill import FixedWeight, GradientModulator, Update
from vfmdistill.errors import WeightsError
from vfmdistill.modulation import Modulation

SHARES = {"a": 0.75, "b": 0.25}


def _each(weight: float = 5.0) -> dict[str, GradientModulator]:
    return {name: GradientModulator(weight, 11.0, 1.0, 20.0) for name in SHARES}


def _backward(modulation: Modulation, pulls: dict[str, float]) -> None:
    student_map = nn.Parameter(torch.ones(1, 2, 2, 2))
    losses = [pull * modulation.watched(name, student_map).mean() for name, pull in pulls.items()]
    torch.stack(losses).sum().backward()


def test_one_modulator_for_all_is_left_to_itself() -> None:
    modulator = GradientModulator(5.0, 11.0, 1.0, 20.0)
    modulation = Modulation(modulator, SHARES, list)
    student_map = torch.ones(1, 2, 2, 2)
    assert modulation.watched("a", student_map) is student_map
    assert modulation.by_teacher == {"a": modulator, "b": modulator}
    assert modulation.metrics() == {"weight": 5.0}
    twin = copy.deepcopy(modulator)
    for taken in (modulation, twin):
        taken.observe(torch.tensor(20.0))
    update = modulation.update()
    assert update == twin.update()
    assert update.teachers == {}
    assert modulation.weight == update.weight < 5


def test_the_share_is_divided_as_the_gradients_at_the_tap_are() -> None:
    modulators = _each()
    modulation = Modulation(modulators, SHARES, list)
    _backward(modulation, {"a": 3.0, "b": -1.0})
    modulation.observe(torch.tensor(40.0))
    assert modulation.metrics()["share/a"] == pytest.approx(30)
    assert modulation.metrics()["share/b"] == pytest.approx(10)
    update = modulation.update()
    assert {name: part.share for name, part in update.teachers.items()} == pytest.approx({"a": 30, "b": 10})
    assert update.teachers["a"].reason == "lowered"
    assert update.teachers["b"].reason == "unchanged"
    assert update[:4] == (5.0, modulation.weight, pytest.approx(40), "by_teacher")
    assert modulation.weight == pytest.approx(0.75 * modulators["a"].weight + 0.25 * 5)


def test_an_overflow_does_not_spoil_the_next_step() -> None:
    modulation = Modulation(_each(), SHARES, list)
    _backward(modulation, {"a": math.inf, "b": 1.0})
    modulation.observe(torch.tensor(math.nan))
    _backward(modulation, {"a": 3.0, "b": 1.0})
    modulation.observe(torch.tensor(40.0))
    assert modulation.metrics()["share/a"] == pytest.approx(30)


def test_gradients_add_up_until_they_are_observed() -> None:
    modulation = Modulation(_each(), SHARES, list)
    _backward(modulation, {"a": 1.0, "b": 1.0})
    _backward(modulation, {"a": 1.0})
    modulation.observe(torch.tensor(30.0))
    assert modulation.metrics()["share/a"] == pytest.approx(20)
    _backward(modulation, {"a": 7.0, "b": 1.0})
    modulation.forget()
    _backward(modulation, {"a": 1.0, "b": 2.0})
    modulation.observe(torch.tensor(30.0))
    assert modulation.metrics()["share/a"] == pytest.approx(10)


@pytest.mark.parametrize(("pull", "share"), [(0.0, 0.0), (math.inf, None), (math.nan, None)])
def test_no_gradient_is_a_share_of_nothing_and_a_broken_one_is_none(pull: float, share: float | None) -> None:
    modulation = Modulation(_each(), SHARES, list)
    _backward(modulation, {"a": pull, "b": pull})
    modulation.observe(torch.tensor(0.0 if pull == 0 else 30.0))
    update = modulation.update()
    assert [part.share for part in update.teachers.values()] == [share, share]
    assert update.share == (0.0 if share == 0 else None)
    reasons = {part.reason for part in update.teachers.values()}
    assert reasons == {"no_gradient" if share == 0 else "no_observation"}


def test_losses_are_weighted_by_the_teachers_own_weight() -> None:
    modulation = Modulation({"a": FixedWeight(2.0), "b": FixedWeight(10.0)}, SHARES, list)
    losses = {"a": torch.tensor(1.0), "b": torch.tensor(0.5)}
    assert modulation.weighted(losses).item() == 7.0
    assert Modulation(FixedWeight(4.0), SHARES, list).weighted(losses).item() == 6.0
    assert not modulation.adapts
    assert Modulation({"a": FixedWeight(2.0), "b": GradientModulator()}, SHARES, list).adapts


def test_finish_adapting_reaches_every_modulator() -> None:
    modulation = Modulation(_each(), SHARES, list)
    modulation.finish_adapting()
    _backward(modulation, {"a": 1.0, "b": 1.0})
    modulation.observe(torch.tensor(30.0))
    assert {update.reason for update in modulation.update().teachers.values()} == {"final_phase"}
    assert modulation.weight == 20.0


def test_resumes_exactly_from_json() -> None:
    def teach(modulation: Modulation, pull: Tensor) -> Update:
        _backward(modulation, {"a": pull.item(), "b": 1.0})
        modulation.observe(torch.tensor(40.0))
        return modulation.update()

    modulation, again = Modulation(_each(), SHARES, list), Modulation(_each(), SHARES, list)
    teach(modulation, torch.tensor(3.0))
    again.load_state_dict(json.loads(json.dumps(modulation.state_dict())))
    assert teach(again, torch.tensor(2.0)) == teach(modulation, torch.tensor(2.0))


def test_states_of_other_modulators_change_nothing() -> None:
    each, shared = Modulation(_each(), SHARES, list), Modulation(GradientModulator(5.0, 11.0, 1.0, 20.0), SHARES, list)
    with pytest.raises(WeightsError, match=r"one modulator for all teachers; expected .* for each of"):
        each.load_state_dict(shared.state_dict())
    with pytest.raises(WeightsError, match=r"each of \['a', 'b'\]; expected that of one modulator for all"):
        shared.load_state_dict(each.state_dict())
    state = Modulation({"a": GradientModulator(9.0, 11.0, 1.0), "b": FixedWeight(1.0)}, SHARES, list).state_dict()
    before = each.state_dict()
    with pytest.raises(WeightsError, match="'FixedWeight' modulator"):
        each.load_state_dict(state)
    assert each.state_dict() == before


def test_a_share_that_is_not_finite_is_none_for_every_teacher() -> None:
    modulation = Modulation(_each(), SHARES, list)
    modulation.observe(torch.tensor(math.nan))  # where no teacher pulled either
    assert {update.reason for update in modulation.update().teachers.values()} == {"no_observation"}
