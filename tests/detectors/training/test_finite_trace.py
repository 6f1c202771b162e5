from typing import Any

import torch
from torch import Tensor, nn

from detectors.training.finite_trace import FiniteTrace, describe_faults


class Root(nn.Module):
    """Its gradient at 0 is infinite, its value is not."""

    def forward(self, values: Tensor) -> Tensor:
        return values.sqrt()


class Quotient(nn.Module):
    def forward(self, values: Tensor, divisor: Tensor) -> dict[str, Any]:
        return {"sound": values, "list": [values / divisor]}


def test_faults_in_words() -> None:
    values = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])
    assert describe_faults(values) == "1 NaN and 2 infinite"
    assert describe_faults(values[2:]) == "2 infinite"
    assert describe_faults(values[:1]) == ""


def test_the_innermost_first_module_is_named_with_what_it_was_given() -> None:
    inner = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(2), nn.ReLU())
    network = nn.Sequential(nn.Linear(3, 2), inner, nn.Linear(2, 1))
    inner[1].weight.data[1] = torch.inf
    with FiniteTrace({"": network}) as trace:
        network(torch.rand(4, 3))
    assert trace.output is not None
    assert trace.output.startswith("1.1 (BatchNorm1d): its output (4, 2) holds ")
    assert trace.output.endswith("all that it was given was finite")


def test_an_input_that_was_spoiled_before_is_told_apart_also_inside_containers() -> None:
    part = Quotient()
    with FiniteTrace({"part": part}) as trace:
        part(torch.ones(2), divisor=torch.tensor([1.0, 0.0]))
    assert trace.output == "part (Quotient): its output (2,) holds 1 infinite; all that it was given was finite"
    with FiniteTrace({"part": part}) as trace:
        part(torch.ones(2), divisor=torch.tensor([torch.nan, 1.0]))
    assert trace.output == "part (Quotient): its output (2,) holds 1 NaN; it was given 1 NaN"


def test_the_gradient_is_followed_back_from_the_loss() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Root(), nn.Identity())
    network[0].weight.data.fill_(-1.0)
    network[0].bias.data.fill_(0.0)
    with FiniteTrace({"": network}) as trace:
        network(torch.ones(1, 2)).sum().backward()
    assert trace.output is None
    # The square root's own gradient is 1; what it hands back to the module before it is 1 / 0.
    assert trace.gradient == "1 (ReLU): the gradient (1, 2) of its output holds 2 infinite"


def test_what_no_module_inside_did_is_laid_at_the_door_of_the_whole() -> None:
    whole = Quotient()
    with FiniteTrace({"": whole}) as trace:
        whole(torch.ones(1), divisor=torch.zeros(1))
    assert trace.output is not None
    assert trace.output.startswith("the whole (Quotient): ")


def test_nothing_is_left_on_the_modules() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with FiniteTrace({"": network}) as trace:
        network(torch.ones(1, 2)).sum().backward()
    assert (trace.output, trace.gradient) == (None, None)
    assert not any(module._forward_hooks for module in network.modules())
