from __future__ import annotations

import torch
from torch import nn

from vfmdistill.versions import Versions


def test_what_an_optimizer_writes_shows() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    versions = Versions(lambda: parameters)
    assert not versions.changed
    for write in (lambda p: p.add_(1), lambda p: p.zero_(), lambda p: p.copy_(torch.ones(3))):
        versions.note()
        assert not versions.changed
        with torch.no_grad():
            write(parameters[1])
        assert versions.changed
    versions.note()
    assert not versions.changed


def test_parameters_that_took_the_place_of_others_are_not_compared() -> None:
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))]
    versions = Versions(lambda: parameters)
    versions.note()
    first = parameters[0]
    parameters[0] = nn.Parameter(torch.zeros(2))
    with torch.no_grad():
        parameters[0].add_(1)
        first.add_(1)
    assert not versions.changed
    parameters[0] = first
    assert versions.changed
