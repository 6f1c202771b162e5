from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from vfmdistill import gradient_share
from vfmdistill.gradients import average_gradients

READS = {"item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__"}


def _parameters(*gradients: Sequence[float] | None, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    parameters = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros(2 if gradient is None else len(gradient), dtype=dtype))
        parameter.grad = None if gradient is None else torch.tensor(gradient, dtype=dtype)
        parameters.append(parameter)
    return parameters


def test_share_is_in_percent_of_the_l1_norms() -> None:
    tap, other, frozen = _parameters([1.0, -2.0], [3.0, 4.0], None)
    share = gradient_share([tap], [tap, other, frozen])
    assert share.shape == ()
    assert share.dtype == torch.float32
    assert share.item() == pytest.approx(30.0)


def test_shared_and_repeated_parameters_count_once() -> None:
    tap, other = _parameters([1.0, -2.0], [3.0, 4.0])
    assert gradient_share([tap, tap], [other, tap, other]).item() == pytest.approx(30.0)
    assert gradient_share(iter([tap]), iter([other])).item() == pytest.approx(30.0)


def test_without_gradient() -> None:
    tap, other = _parameters(None, [3.0])
    assert gradient_share([tap], [other]).item() == 0
    assert gradient_share([other], [tap]).item() == 100
    assert gradient_share([tap], [tap]).item() == 0
    assert gradient_share([], []).item() == 0
    (zero,) = _parameters([0.0, 0.0])
    assert gradient_share([zero], [zero]).item() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["tap", "rest"])
def test_not_finite_is_nan(value: float, where: str) -> None:
    parameters = _parameters([1.0, value], [3.0])
    tap, rest = parameters if where == "tap" else reversed(parameters)
    assert gradient_share([tap], [rest]).isnan()


def test_precisions_mix_and_half_does_not_overflow() -> None:
    (half,) = _parameters([60000.0] * 50, dtype=torch.float16)
    (brain,) = _parameters([1e6], dtype=torch.bfloat16)
    (double,) = _parameters([0.0, 3e6 - 1e6], dtype=torch.float64)
    expected = 100 * 3e6 / (3e6 + float(brain.grad) + 2e6)  # type: ignore[arg-type]
    assert gradient_share([half], [brain, double]).item() == pytest.approx(expected, rel=1e-3)


def test_scale_does_not_matter() -> None:
    torch.manual_seed(0)
    parameters = _parameters(torch.randn(100).tolist(), torch.randn(300).tolist())
    before = gradient_share(parameters[:1], parameters)
    for parameter in parameters:
        parameter.grad *= 65536  # type: ignore[operator]
    assert torch.equal(gradient_share(parameters[:1], parameters), before)


def test_large_tensors_lose_no_digits() -> None:
    torch.manual_seed(0)
    parameters = _parameters(torch.rand(2_000_000).tolist(), torch.rand(1000).tolist())
    tap, rest = (parameter.grad.double().sum() for parameter in parameters)  # type: ignore[union-attr]
    expected = 100 * rest / (tap + rest)
    assert gradient_share(parameters[1:], parameters).item() == pytest.approx(expected.item(), rel=1e-6)


def test_nothing_is_read_from_the_device() -> None:
    class NoReads(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert func.__name__ not in READS, func.__name__
            return func(*args, **(kwargs or {}))

    parameters = _parameters([1.0, -2.0], [3.0, 4.0])
    with NoReads():
        with pytest.raises(AssertionError, match="item"):
            torch.ones(()).item()
        gradient_share(parameters[:1], parameters)


def test_average_without_processes_changes_nothing() -> None:
    with_gradient, without = _parameters([1.0], None)
    average_gradients([with_gradient, without])
    assert with_gradient.grad == 1
    assert without.grad is None
