from __future__ import annotations

from support.students import Classifier
from torch import nn

from vfmdistill.trained import trained


def test_gives_what_parameters_gives_without_what_is_frozen(student: Classifier) -> None:
    student.stem.requires_grad_(False)
    student.body[0].bias.requires_grad_(False)
    student.register_parameter("none", None)
    student.register_module("nothing", None)
    expected = [parameter for parameter in student.parameters() if parameter.requires_grad]
    assert [id(parameter) for parameter in trained(student)] == [id(parameter) for parameter in expected]


def test_gives_each_parameter_once() -> None:
    shared = nn.Linear(3, 3)
    tied = nn.Linear(3, 3)
    tied.weight = shared.weight
    network = nn.Sequential(shared, nn.ReLU(), shared, tied)
    assert [id(p) for p in trained(network, shared)] == [id(p) for p in network.parameters()]
    assert trained() == []
