"""Parameter groups: their sizes are those of the authors' code, run over the authors' models."""

from typing import Any

import pytest
import torch
from torch import nn

import detectors
from detectors.training.optimizer import build_optimizer, describe_groups, parameter_groups, set_learning_rate
from detectors.training.recipe import Recipe, recipe_for
from vfmdistill import SemanticInjector

# (rate, weight decay, tensors) of every group that `get_optim_params` makes, empty ones left out; RT-DETRv4 with its
# projector of two tensors. Of RT-DETRs/RT-DETRv4 (commit df44122), of lyuwenyu/RT-DETR (commit 068dfde) from "rtdetr".
GROUPS = {
    "rtdetrv4_s": {(2e-4, 1e-4, 102), (4e-4, 0.0, 222), (4e-4, 1e-4, 166)},
    "rtdetrv4_m": {(4e-5, 1e-4, 142), (4e-4, 0.0, 296), (4e-4, 1e-4, 208)},
    "rtdetrv4_l": {(2.5e-5, 1.25e-4, 240), (5e-4, 0.0, 220), (5e-4, 1.25e-4, 276)},
    "rtdetrv4_x": {(5e-6, 1.25e-4, 390), (5e-4, 0.0, 226), (5e-4, 1.25e-4, 279)},
    "deim_n": {(4e-4, 1e-4, 186), (8e-4, 0.0, 151), (8e-4, 1e-4, 91)},
    "deim_m": {(4e-5, 1e-4, 142), (4e-4, 0.0, 296), (4e-4, 1e-4, 206)},
    "dfine_s": {(1e-4, 1e-4, 186), (2e-4, 0.0, 191), (2e-4, 1e-4, 111)},
    "dfine_l": {(1.25e-5, 1.25e-4, 75), (2.5e-4, 0.0, 220), (2.5e-4, 1.25e-4, 274)},  # norms and stem are frozen
    "deim_rtdetrv2_r18": {(2e-4, 0.0, 162), (2e-4, 1e-4, 166)},
    "deim_rtdetrv2_r50": {(2e-5, 1e-4, 55), (2e-4, 0.0, 236), (2e-4, 1e-4, 211)},
    "rtdetrv2_r18": {(1e-4, 0.0, 162), (1e-4, 1e-4, 164)},
    "rtdetrv2_r34": {(5e-5, 1e-4, 39), (5e-5, 0.0, 78), (1e-4, 0.0, 181), (1e-4, 1e-4, 106)},
    "rtdetrv2_r50": {(1e-5, 1e-4, 52), (1e-4, 0.0, 126), (1e-4, 1e-4, 209)},
    "rtdetr_r101": {(1e-6, 1e-4, 103), (1e-4, 1e-4, 335)},
    # There it is 205 and 130: the weights of four norms whose names do not say so, those of the encoder's input
    # projections and of the query selection, decay with the rest.
    "rtdetr_r50": {(1e-5, 1e-4, 52), (1e-4, 0.0, 209), (1e-4, 1e-4, 126)},
}


def groups_of(model: str) -> tuple[nn.Module, Recipe, list[dict[str, Any]]]:
    """Return a model without memory, its recipe, and its groups; RT-DETRv4's with an injector."""
    recipe = recipe_for(model)
    with torch.device("meta"):
        student = detectors.build(model, num_classes=80)
        width = 384 if model.endswith("_x") else 256
        injectors = nn.ModuleDict({"teacher": SemanticInjector(width, 768)}) if recipe.teacher else None
    return student, recipe, parameter_groups(student, injectors, recipe)


@pytest.mark.parametrize("model", list(GROUPS))
def test_rates_decays_and_sizes_of_the_groups(model: str) -> None:
    _, _, groups = groups_of(model)
    sizes: dict[tuple[object, object], int] = {}
    for group in groups:  # roles with equal settings are one group there
        key = (group["lr"], group["weight_decay"])
        sizes[key] = sizes.get(key, 0) + len(group["params"])
    assert {(*key, tensors) for key, tensors in sizes.items()} == GROUPS[model]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        ("rtdetrv4_s", ["backbone", "undecayed", "rest"]),
        ("rtdetrv2_r18", ["backbone", "undecayed", "rest"]),
        ("rtdetrv2_r34", ["backbone", "backbone norms", "undecayed", "rest"]),
        ("rtdetr_r101", ["backbone", "rest"]),
    ],
)
def test_groups_by_role_hold_every_trained_parameter_once(model: str, names: list[str]) -> None:
    student, _, groups = groups_of(model)
    assert [group["name"] for group in groups] == names
    trained = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    held = [name for group in groups for name in group["names"]]
    assert sorted(name for name in held if not name.startswith("injectors.")) == sorted(trained)
    by_name = dict(student.named_parameters())
    for group in groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            assert by_name.get(name, parameter) is parameter


def test_which_parameter_has_which_role() -> None:
    _, _, groups = groups_of("rtdetrv4_n")
    role = {name: group["name"] for group in groups for name in group["names"]}
    backbone_norm = next(name for name in role if name.startswith("backbone.") and ".bn" in name)
    assert role[backbone_norm] == "backbone"
    assert role["encoder.aifi.layers.0.norm1.weight"] == role["encoder.aifi.layers.0.norm1.bias"] == "undecayed"
    assert role["decoder.selection.score_head.bias"] == "undecayed"
    assert role["decoder.selection.score_head.weight"] == "rest"
    assert all(role[name] == "rest" for name in role if name.startswith("injectors."))


def test_optimizer_takes_the_groups_as_they_are() -> None:
    _, recipe, groups = groups_of("rtdetrv4_s")
    optimizer = build_optimizer(groups, recipe)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    described = {group["name"]: group for group in describe_groups(optimizer)}
    assert {name: (group["learning_rate"], group["weight_decay"]) for name, group in described.items()} == {
        "backbone": (2e-4, 1e-4), "undecayed": (4e-4, 0.0), "rest": (4e-4, 1e-4),
    }  # fmt: skip
    assert sum(group["tensors"] for group in described.values()) == 490
    # All of the model's 10,321,877 but the two numbers that shape its edge distributions; and the projector's
    assert sum(group["parameters"] for group in described.values()) == 10_321_875 + 197_376


def test_learning_rate_is_a_factor_on_each_groups_own() -> None:
    _, recipe, groups = groups_of("rtdetrv4_s")
    optimizer = build_optimizer(groups, recipe)
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-5, 1e-4, 1e-4]
    set_learning_rate(optimizer, 1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [2e-4, 4e-4, 4e-4]
