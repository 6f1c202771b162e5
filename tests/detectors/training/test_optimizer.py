"""Group sizes pinned to the authors' code (RT-DETRv4 commit df44122): at backbone rate, without decay, the rest."""

import pytest
import torch
from torch import nn

import detectors
from detectors.training.optimizer import build_optimizer, parameter_groups, set_learning_rate
from detectors.training.recipe import recipe_for
from vfmdistill import SemanticInjector


@pytest.mark.parametrize(("model", "sizes"), [("rtdetrv4_s", (102, 222, 166)), ("rtdetrv4_l", (240, 220, 276))])
def test_group_sizes_with_the_projector(model: str, sizes: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        student = detectors.build(model, num_classes=80)
        injectors = nn.ModuleDict({"teacher": SemanticInjector(256, 768)})
    groups = parameter_groups(student, injectors, recipe_for(model))
    assert [group["name"] for group in groups] == ["backbone", "undecayed", "rest"]
    assert tuple(len(group["params"]) for group in groups) == sizes


def test_rates_and_decay_by_role() -> None:
    recipe = recipe_for("rtdetrv4_n")
    with torch.device("meta"):
        student = detectors.build("rtdetrv4_n", num_classes=3)
    groups = {group["name"]: group for group in parameter_groups(student, None, recipe)}
    assert (groups["backbone"]["lr"], groups["backbone"]["weight_decay"]) == (4e-4, 1e-4)
    assert (groups["undecayed"]["lr"], groups["undecayed"]["weight_decay"]) == (8e-4, 0.0)
    assert (groups["rest"]["lr"], groups["rest"]["weight_decay"]) == (8e-4, 1e-4)
    assert all(name.startswith("backbone.") for name in groups["backbone"]["names"])
    assert all(not name.endswith("bias") for name in groups["rest"]["names"])
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert sorted(name for group in groups.values() for name in group["names"]) == sorted(trained)


def test_learning_rate_is_a_factor_on_each_groups_own() -> None:
    recipe = recipe_for("rtdetrv4_s")
    student = detectors.build("rtdetrv4_n", num_classes=3)
    optimizer = build_optimizer(parameter_groups(student, None, recipe), recipe)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-5, 1e-4, 1e-4]
    set_learning_rate(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [2e-4, 4e-4, 4e-4]
