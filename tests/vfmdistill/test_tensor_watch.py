"""Watching tensors: what is noticed, and that a copy watches nothing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from vfmdistill.teachers.tensor_watch import TensorWatch


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).eval().requires_grad_(False)


@pytest.mark.parametrize(
    "change",
    [
        lambda given: given[0].weight.mul_(1),
        lambda given: given[1].running_mean.add_(1),
        lambda given: given.double(),
        lambda given: given.to(memory_format=torch.channels_last),
        lambda given: given.load_state_dict(network().state_dict()),
        lambda given: given.load_state_dict(network().state_dict(), assign=True),
        lambda given: given.add_module("more", nn.Linear(1, 1)),
        lambda given: given.pop(1),
        lambda given: setattr(given[0].weight, "data", given[0].weight.data.mT),  # the same memory, read otherwise
    ],
)
def test_what_is_noticed(change: Callable[[nn.Sequential], object]) -> None:
    given = network()
    watch = TensorWatch(given)
    given(torch.rand(1, 3, 8, 8))
    assert watch.holds(given)
    change(given)
    assert not watch.holds(given)
    assert TensorWatch(given).holds(given)


def test_a_new_tensor_at_the_same_address_cannot_be() -> None:
    given = nn.Module()
    given.weight = nn.Parameter(torch.zeros(512, 512))  # large enough for its memory to be given out again at once
    watch = TensorWatch(given)
    for value in range(1, 9):
        del given.weight
        given.weight = nn.Parameter(torch.full((512, 512), float(value)))
        assert not watch.holds(given)


def test_a_copy_watches_nothing() -> None:
    given = network()
    watch = TensorWatch(given)
    for twin in (copy.deepcopy(watch), pickle.loads(pickle.dumps(watch))):
        assert not twin.holds(given)
