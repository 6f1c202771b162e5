from __future__ import annotations

import torch
from torch import Tensor, nn

from vfmdistill.step_shares import StepShares


def _shares(*values: float) -> Tensor:
    return torch.tensor(values)


def _steps(*parameters: nn.Parameter) -> StepShares:
    return StepShares(lambda: parameters)


def _move(parameter: nn.Parameter, silently: bool) -> None:
    """Do what an optimizer does; fused ones do not count the version up."""
    with torch.no_grad():
        if silently:
            parameter.data += 1  # on another tensor over the same memory
        else:
            parameter += 1


def test_the_last_observation_of_a_step_counts() -> None:
    for silently in (False, True):
        parameter = nn.Parameter(torch.zeros(2, 1))
        steps = _steps(parameter, nn.Parameter(torch.zeros(3)))
        assert steps.replace(_shares(1.0)) is None
        before = steps.replace(_shares(2.0))
        assert before is not None
        assert before.isnan().all()
        version = parameter._version
        _move(parameter, silently)
        assert (parameter._version == version) == silently
        before = steps.replace(_shares(3.0))
        assert before is not None
        assert before.tolist() == [2.0]


def test_what_is_used_is_released_once() -> None:
    for silently in (False, True):
        parameter = nn.Parameter(torch.zeros(2))
        steps = _steps(parameter)
        steps.replace(_shares(1.0, 2.0))
        released = steps.release()
        assert released is not None
        assert released.isnan().all()
        _move(parameter, silently)
        released = steps.release()
        assert released is not None
        assert released.tolist() == [1.0, 2.0]
        released = steps.release()
        assert released is None or released.isnan().all()
        held = steps.flush()
        assert held is None or held.isnan().all()


def test_what_is_given_up_is_withdrawn_unless_it_was_used() -> None:
    for used in (False, True):
        parameter = nn.Parameter(torch.zeros(2))
        steps = _steps(parameter)
        steps.replace(_shares(1.0))
        if used:
            _move(parameter, silently=True)
        steps.withdraw()
        held = steps.flush()
        assert held is not None
        assert held.isnan().any() != used
        assert steps.flush() is None


def test_parameters_may_be_replaced_or_missing() -> None:
    parameters = [nn.Parameter(torch.zeros(2))]
    steps = StepShares(lambda: parameters)
    steps.replace(_shares(1.0))
    parameters[0] = nn.Parameter(torch.zeros(3))
    before = steps.replace(_shares(2.0))
    assert before is not None
    assert before.tolist() == [1.0]
    alone = StepShares(list)
    alone.replace(_shares(1.0))
    assert alone.used.item() is False
    held = alone.flush()
    assert held is not None
    assert held.tolist() == [1.0]
