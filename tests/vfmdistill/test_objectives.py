from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vfmdistill import objectives
from vfmdistill.objectives import OBJECTIVES

STUDENT = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]])  # two channels, one row of two cells: (1, 0) and (0, 2)
TEACHER = torch.tensor([[[[1.0, 3.0]], [[1.0, 0.0]]]])  # (1, 1) and (3, 0)


def _maps() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 3, 4, generator=generator), torch.randn(2, 5, 3, 4, generator=generator)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", ((1 - math.sqrt(0.5)) + 1) / 2),
        ("mse", (0 + 1 + 9 + 4) / 4),
        ("smooth_l1", (0 + 0.5 + 2.5 + 1.5) / 4),
        ("relational", 2 * 0.5 / 4),  # both diagonals are 1; off them 0 against sqrt(1/2)
        ("pearson", ((1 + 1) + (1 + 1)) / 2),  # two cells: each channel correlates by -1
    ],
)
def test_value_computed_by_hand(name: str, expected: float) -> None:
    assert OBJECTIVES[name](STUDENT, TEACHER).item() == pytest.approx(expected, abs=1e-6)


def test_channel_wise_computed_by_hand() -> None:
    def softmax(x: float, y: float) -> tuple[float, float]:
        a, b = math.exp(x / 4), math.exp(y / 4)
        return a / (a + b), b / (a + b)

    expected = 0.0
    for student, teacher in (((1, 0), (1, 3)), ((0, 2), (1, 0))):
        pairs = zip(softmax(*teacher), softmax(*student), strict=True)
        expected += 16 * sum(t * math.log(t / s) for t, s in pairs) / 2
    assert objectives.channel_wise(STUDENT, TEACHER).item() == pytest.approx(expected, rel=1e-5)
    hot = objectives.channel_wise(STUDENT, TEACHER, temperature=1e3)
    assert hot.item() == pytest.approx(((-1 - 2) ** 2 + (2 + 1) ** 2) / 4 / 4, rel=1e-2)  # tends to a centred mse


def test_pearson_is_half_the_distance_of_standardised_channels() -> None:
    student, teacher = _maps()

    def standardised(x: Tensor) -> Tensor:
        return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), unbiased=False, keepdim=True)

    expected = 0.5 * F.mse_loss(standardised(student), standardised(teacher))
    torch.testing.assert_close(objectives.pearson(student, teacher), expected)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_scalar_zero_at_the_teacher_and_falls_along_its_gradient(name: str) -> None:
    student, teacher = _maps()
    student.requires_grad_()
    value = OBJECTIVES[name](student, teacher)
    assert value.shape == ()
    (gradient,) = torch.autograd.grad(value, student)
    assert OBJECTIVES[name](student - 1e-2 * gradient / gradient.norm(), teacher) < value
    assert OBJECTIVES[name](teacher, teacher).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["cosine", "relational", "pearson"])
def test_scale_does_not_matter_where_directions_are_compared(name: str) -> None:
    student, teacher = _maps()
    torch.testing.assert_close(OBJECTIVES[name](3 * student, teacher), OBJECTIVES[name](student, 0.2 * teacher))


def test_cosine_survives_an_empty_cell() -> None:
    student = torch.zeros(1, 3, 2, 2, requires_grad=True)
    value = objectives.cosine(student, torch.ones(1, 3, 2, 2))
    value.backward()
    assert value.item() == 1
    assert student.grad is not None
    assert student.grad.isfinite().all()


WEIGHTED = ["cosine", "mse", "smooth_l1"]
WEIGHTS = torch.tensor([0.0, 1.0, 2.0, 0.5]).repeat(2, 3, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cosine", (3 * (1 - math.sqrt(0.5)) + 1) / 4),
        ("mse", (3 * (0 + 1) / 2 + (9 + 4) / 2) / 4),
        ("smooth_l1", (3 * (0 + 0.5) / 2 + (2.5 + 1.5) / 2) / 4),
    ],
)
def test_weighted_value_computed_by_hand(name: str, expected: float) -> None:
    value = OBJECTIVES[name](STUDENT, TEACHER, weights=torch.tensor([[[3.0, 1.0]]]))
    assert value.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("weight", [1.0, 1e-3, 40.0])
def test_cells_of_one_weight_give_the_plain_mean(name: str, weight: float) -> None:
    student, teacher = (feature_map.double() for feature_map in _maps())
    weights = torch.full((2, 3, 4), weight, dtype=torch.float64)
    weighted = OBJECTIVES[name](student, teacher, weights=weights)
    torch.testing.assert_close(weighted, OBJECTIVES[name](student, teacher))


@pytest.mark.parametrize("name", WEIGHTED)
def test_cells_without_weight_are_not_there(name: str) -> None:
    student, teacher = _maps()
    student.requires_grad_()
    weights = torch.zeros(2, 3, 4)
    weights[:, :2, 1:] = 1
    value = OBJECTIVES[name](student, teacher, weights=weights)
    value.backward()
    torch.testing.assert_close(value, OBJECTIVES[name](student[:, :, :2, 1:], teacher[:, :, :2, 1:]))
    assert student.grad is not None
    counted = student.grad.abs().sum(dim=1) > 0
    assert torch.equal(counted, weights > 0)


@pytest.mark.parametrize("name", WEIGHTED)
def test_what_is_not_finite_reaches_nothing_from_a_cell_without_weight(name: str) -> None:
    student, teacher = _maps()
    weights = torch.ones(2, 3, 4)
    weights[0, 1, 2] = 0
    teacher[0, :, 1, 2] = float("nan")
    student[0, 0, 1, 2] = float("inf")
    student.requires_grad_()
    value = OBJECTIVES[name](student, teacher, weights=weights)
    value.backward()
    assert value.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", WEIGHTED)
def test_no_weight_at_all_is_no_loss(name: str) -> None:
    student, teacher = _maps()
    student.requires_grad_()
    value = OBJECTIVES[name](student, teacher, weights=torch.zeros(2, 3, 4))
    value.backward()
    assert value == 0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("weight", [0.0, 1e-38])
def test_gradient_does_not_overflow_where_the_weights_sum_to_next_to_nothing(name: str, weight: float) -> None:
    student, teacher = _maps()
    student.requires_grad_()
    with torch.autograd.set_detect_anomaly(True):  # raises at a NaN on the way, too
        (1e6 * OBJECTIVES[name](student, teacher, weights=torch.full((2, 3, 4), weight))).backward()
    (plain,) = torch.autograd.grad(1e6 * OBJECTIVES[name](student, teacher), student)
    assert student.grad is not None
    torch.testing.assert_close(student.grad, plain if weight else torch.zeros_like(plain))


@pytest.mark.parametrize("name", WEIGHTED)
def test_gradient_of_the_weighted_mean(name: str) -> None:
    student, teacher = (feature_map.double() for feature_map in _maps())
    objective = OBJECTIVES[name]
    assert torch.autograd.gradcheck(lambda x: objective(x, teacher, weights=WEIGHTS.double()), student.requires_grad_())
