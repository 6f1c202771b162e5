from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vfmdistill import InputError, SemanticInjector, UnknownNameError
from vfmdistill.objectives import mse
from vfmdistill.projectors import MLPProjector


def test_reference_is_a_linear_layer_and_the_cosine() -> None:
    torch.manual_seed(0)
    injector = SemanticInjector(6, 10)
    student_map, teacher_map = torch.randn(2, 6, 3, 5), torch.randn(2, 10, 3, 5)
    linear = nn.Linear(6, 10)
    linear.load_state_dict(injector.projector.state_dict())
    cells = linear(student_map.flatten(2).transpose(1, 2))
    expected = 1 - torch.cosine_similarity(cells, teacher_map.flatten(2).transpose(1, 2), dim=-1).mean()
    torch.testing.assert_close(injector(student_map, teacher_map), expected)


def test_projector_and_objective_by_name_as_module_and_as_function() -> None:
    named = SemanticInjector(6, 10, projector="mlp", objective="mse")
    given = SemanticInjector(6, 10, projector=MLPProjector(6, 10), objective=mse)
    given.load_state_dict(named.state_dict())
    maps = torch.randn(2, 6, 3, 5), torch.randn(2, 10, 3, 5)
    assert torch.equal(named(*maps), given(*maps))
    assert "objective=mse" in repr(named)
    parameterless = SemanticInjector(6, 6, projector=nn.Identity(), objective=functools.partial(mse))
    assert parameterless(maps[0], maps[0]) == 0
    assert "objective=partial" in repr(parameterless)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projector": "linaer"}, "unknown projector 'linaer'; nearest: linear"),
        ({"objective": "cosin"}, "unknown objective 'cosin'; nearest: cosine"),
    ],
)
def test_unknown_names(options: dict[str, str], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        SemanticInjector(6, 10, **options)


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape", "message"),
    [
        ((2, 7, 3, 5), (2, 10, 3, 5), r"student map has shape \(2, 7, 3, 5\); expected \(N, 6, h, w\)"),
        ((2, 6, 3, 5), (2, 9, 3, 5), r"teacher map has shape \(2, 9, 3, 5\); expected \(N, 10, h, w\)"),
        ((2, 6, 15), (2, 10, 3, 5), "student map has shape"),
        ((2, 6, 3, 5), (2, 10, 5, 3), "differ in images or grid"),
        ((2, 6, 3, 5), (1, 10, 3, 5), "differ in images or grid"),
    ],
)
def test_maps_that_do_not_fit(student_shape: tuple[int, ...], teacher_shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SemanticInjector(6, 10)(torch.randn(student_shape), torch.randn(teacher_shape))


@pytest.mark.parametrize(
    ("injector_dtype", "map_dtype", "expected"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.float32),
        (torch.float64, torch.float64, torch.float64),
    ],
)
def test_objective_is_never_in_half_precision_and_doubles_stay(
    injector_dtype: torch.dtype, map_dtype: torch.dtype, expected: torch.dtype
) -> None:
    injector = SemanticInjector(6, 10).to(injector_dtype)
    student_map = torch.randn(2, 6, 3, 5, dtype=map_dtype, requires_grad=True)
    loss = injector(student_map, torch.randn(2, 10, 3, 5))
    loss.backward()
    assert loss.dtype == expected
    assert student_map.grad is not None
    assert student_map.grad.dtype == map_dtype


def test_objective_is_float32_under_autocast() -> None:
    seen = []

    def objective(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        seen.append((student.dtype, teacher.dtype, torch.is_autocast_enabled("cpu")))
        return mse(student, teacher)

    injector = SemanticInjector(6, 10, objective=objective)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = injector(torch.randn(2, 6, 3, 5), torch.randn(2, 10, 3, 5).bfloat16())
    assert seen == [(torch.float32, torch.float32, False)]
    assert loss.dtype == torch.float32


def test_weights_reach_the_objective_in_its_precision() -> None:
    injector = SemanticInjector(6, 10, objective="mse")
    student_map, teacher_map = torch.randn(2, 6, 3, 5), torch.randn(2, 10, 3, 5)
    mask = torch.rand(2, 3, 5) > 0.5
    expected = mse(injector.project(student_map), teacher_map, weights=mask.float())
    assert injector.takes_weights
    for weights in (mask, mask.double(), mask.to(torch.uint8)):
        torch.testing.assert_close(injector(student_map, teacher_map, weights), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = injector(student_map, teacher_map, mask.to(torch.bfloat16))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("objective", ["cosine", "mse", "smooth_l1"])
def test_without_weights_every_bit_is_the_plain_mean(objective: str) -> None:
    injector = SemanticInjector(6, 10, objective=objective)
    student_map, teacher_map = torch.randn(2, 6, 3, 5), torch.randn(2, 10, 3, 5)
    projected = injector.project(student_map)
    expected = {
        "cosine": lambda: (1 - F.cosine_similarity(projected, teacher_map, dim=1)).mean(),
        "mse": lambda: F.mse_loss(projected, teacher_map),
        "smooth_l1": lambda: F.smooth_l1_loss(projected, teacher_map),
    }
    assert torch.equal(injector(student_map, teacher_map), expected[objective]())


def test_weights_below_0_count_as_0() -> None:
    injector = SemanticInjector(6, 10)
    maps = torch.randn(2, 6, 3, 5), torch.randn(2, 10, 3, 5)
    weights = torch.randn(2, 3, 5)
    assert torch.equal(injector(*maps, weights), injector(*maps, weights.relu()))


def test_own_objectives_take_weights_if_they_say_so() -> None:
    class Objective(nn.Module):
        def forward(self, student: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor | None = None) -> object:
            return mse(student, teacher, weights)

    maps = torch.randn(2, 6, 3, 5), torch.randn(2, 6, 3, 5)
    weights = torch.rand(2, 3, 5)
    own = SemanticInjector(6, 6, projector=nn.Identity(), objective=Objective())
    assert own.takes_weights
    assert torch.equal(own(*maps, weights), mse(*maps, weights))
    assert not SemanticInjector(6, 6, objective=lambda student, teacher: mse(student, teacher)).takes_weights
    assert SemanticInjector(6, 6, objective=functools.partial(mse)).takes_weights


@pytest.mark.parametrize("objective", ["relational", "channel_wise", "pearson"])
def test_objectives_that_take_no_weights_say_which_do(objective: str) -> None:
    injector = SemanticInjector(6, 6, objective=objective)
    maps = torch.randn(2, 6, 3, 5), torch.randn(2, 6, 3, 5)
    with pytest.raises(InputError, match=rf"objective {objective} takes none.*\(cosine, mse, smooth_l1"):
        injector(*maps, torch.ones(2, 3, 5))


@pytest.mark.parametrize("weights", [[[1.0]], torch.ones(2, 3, 5).numpy()])
def test_weights_that_are_no_tensor(weights: Any) -> None:
    with pytest.raises(InputError, match=r"weights: a (list|ndarray); expected a tensor \(2, 3, 5\)"):
        SemanticInjector(6, 10)(torch.randn(2, 6, 3, 5), torch.randn(2, 10, 3, 5), weights)


@pytest.mark.parametrize("weights", [torch.ones(2, 5, 3), torch.ones(2, 1, 3, 5), torch.ones(3, 5, device="meta")])
def test_weights_of_other_cells(weights: torch.Tensor) -> None:
    injector = SemanticInjector(6, 10)
    with pytest.raises(InputError, match=r"expected \(2, 3, 5\), a number of 0 or above for each cell .* on cpu"):
        injector(torch.randn(2, 6, 3, 5), torch.randn(2, 10, 3, 5), weights)
