from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from vfmdistill.balance import FeatureBalance
from vfmdistill.errors import WeightsError

CPU = torch.device("cpu")


def _map(scale: float, shift: float = 0.0, seed: int = 0, channels: int = 6) -> Tensor:
    noise = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return scale * noise + shift * torch.arange(channels).view(-1, 1, 1)


def test_brings_maps_to_an_average_variance_of_1() -> None:
    maps = {"small": _map(0.01), "large": _map(300.0, channels=3)}
    balance = FeatureBalance(maps, CPU)
    balance.add(maps)
    for name, feature_map in maps.items():
        variance = balance.scaled(name, feature_map).var(dim=(0, 2, 3), correction=0).mean()
        assert variance.item() == pytest.approx(1, rel=1e-5)


def test_the_mean_of_a_channel_is_no_variance() -> None:
    plain, shifted = _map(2.0), _map(2.0, shift=100.0)
    balance = FeatureBalance(["plain", "shifted"], CPU)
    balance.add({"plain": plain, "shifted": shifted})
    balance.settle()
    state = balance.state_dict()
    assert state["plain"]["variance"] == pytest.approx(state["shifted"]["variance"], rel=1e-3)


def test_is_the_mean_of_all_at_first_and_forgets_later() -> None:
    balance = FeatureBalance(["it"], CPU)
    variances = []
    for seed in range(5):
        feature_map = _map(1.0 + seed, seed=seed)
        balance.add({"it": feature_map})
        balance.settle_alone()
        variances.append(feature_map.var(dim=(0, 2, 3), correction=0).mean().item())
    assert balance.state_dict()["it"] == {"variance": pytest.approx(sum(variances) / 5, rel=1e-5), "count": 5}
    balance.load_state_dict({"it": {"variance": 1.0, "count": 5000.0}})
    balance.add({"it": _map(0.0)})
    balance.settle()
    assert balance.state_dict()["it"]["variance"] == pytest.approx(0.999)


def test_maps_that_are_not_finite_are_left_out() -> None:
    balance = FeatureBalance(["broken", "fine"], CPU)
    balance.add({"broken": torch.full((1, 2, 3, 3), float("nan")), "fine": _map(2.0)})
    balance.settle()
    balance.add({"broken": _map(3.0), "fine": _map(2.0)})
    balance.settle()
    state = balance.state_dict()
    assert state["broken"] == {"variance": pytest.approx(9, rel=0.2), "count": 1}
    assert state["fine"] == {"variance": pytest.approx(4, rel=0.2), "count": 2}


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1])
def test_a_map_without_variance_is_not_blown_up(value: float) -> None:
    balance = FeatureBalance(["flat"], CPU)
    flat = torch.full((2, 3, 4, 4), value)
    balance.add({"flat": flat})
    assert balance.scaled("flat", flat).abs().max() <= 1.0001e4  # a ten-thousandth of its size counts as its deviation


def test_before_any_map_nothing_is_scaled() -> None:
    feature_map = _map(3.0)
    assert torch.equal(FeatureBalance(["it"], CPU).scaled("it", feature_map), feature_map)


def test_half_precision_maps_are_scaled_in_float32() -> None:
    balance = FeatureBalance(["half"], CPU)
    half = _map(1e-3).half()
    balance.add({"half": half})
    scaled = balance.scaled("half", half)
    assert scaled.dtype == torch.float32
    assert scaled.var().item() == pytest.approx(1, rel=0.05)


def test_resumes_exactly_from_json() -> None:
    maps = {"one": _map(0.3), "two": _map(7.0)}
    balance, again = FeatureBalance(maps, CPU), FeatureBalance(maps, CPU)
    balance.add(maps)
    balance.settle()
    again.load_state_dict(json.loads(json.dumps(balance.state_dict())))
    for name, feature_map in maps.items():
        assert torch.equal(balance.scaled(name, feature_map), again.scaled(name, feature_map))
    with pytest.raises(WeightsError, match=r"a feature balance of \['three'\]; expected that of \['one', 'two'\]"):
        balance.load_state_dict({"three": {"variance": 1.0, "count": 1.0}})


def test_goes_by_what_is_settled_and_forgets_what_is_given_up() -> None:
    balance = FeatureBalance(["it"], CPU)
    first, second = _map(2.0), _map(50.0, seed=1)
    balance.add({"it": first})
    scaled = balance.scaled("it", first)
    balance.settle()
    assert torch.equal(balance.scaled("it", first), scaled)
    state = balance.state_dict()
    balance.add({"it": second})
    assert torch.equal(balance.scaled("it", first), scaled)
    snapshot = balance.snapshot()
    balance.settle()
    assert not torch.equal(balance.scaled("it", first), scaled)
    balance.add({"it": second})
    balance.restore(snapshot)
    assert torch.equal(balance.scaled("it", first), scaled)
    assert balance.state_dict() == state
