"""Parameter groups by role, and AdamW over them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .recipe import Recipe


def parameter_groups(model: nn.Module, injectors: nn.Module | None, recipe: Recipe) -> list[dict[str, Any]]:
    """Split the trained parameters of a detector, and of the injectors if there are any, by role.

    Groups, in this order and only where not empty: "backbone" (backbone rate), "backbone norms" (backbone rate, no
    weight decay), "undecayed" (full rate, no weight decay), "rest" (full rate). Which parameters are undecayed is the
    recipe's choice (`undecayed`, `backbone_norms`). The projector belongs to "rest".

    Returns:
        Dictionaries as `torch.optim.AdamW` takes them, with "name" and "names" (of the parameters, in order) besides.
    """
    norms = {id(p) for module in model.modules() if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm))
             for p in module.parameters(recurse=False)}  # fmt: skip
    settings = {
        "backbone": {"lr": recipe.backbone_learning_rate, "weight_decay": recipe.weight_decay},
        "backbone norms": {"lr": recipe.backbone_learning_rate, "weight_decay": 0.0},
        "undecayed": {"lr": recipe.learning_rate, "weight_decay": 0.0},
        "rest": {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
    }
    roles: dict[str, list[tuple[str, nn.Parameter]]] = {role: [] for role in settings}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            roles[_role(name, id(parameter) in norms, recipe)].append((name, parameter))
    if injectors is not None:
        roles["rest"] += [(f"injectors.{name}", parameter) for name, parameter in injectors.named_parameters()]
    return [
        {"name": role, "names": [name for name, _ in members], "params": [p for _, p in members], **settings[role]}
        for role, members in roles.items()
        if members
    ]


def describe_groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return name, number of tensors and of values, full rate and weight decay of every group."""
    return [
        {
            "name": group["name"],
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "learning_rate": group["initial_lr"],
            "weight_decay": group["weight_decay"],
        }
        for group in optimizer.param_groups
    ]


def _role(name: str, is_norm: bool, recipe: Recipe) -> str:
    if name.startswith("backbone."):
        norms = {"as_norms": "undecayed", "as_backbone": "backbone", "undecayed": "backbone norms"}
        return norms[recipe.backbone_norms] if is_norm else "backbone"
    undecayed = {
        "norms": is_norm,
        "norms_and_biases": is_norm or name.endswith("bias"),
        "nothing": False,
    }
    return "undecayed" if undecayed[recipe.undecayed] else "rest"


def build_optimizer(groups: Iterable[dict[str, Any]], recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW (β 0.9, 0.999) over `parameter_groups`; each group remembers its full rate as "initial_lr"."""
    return torch.optim.AdamW([{**group, "initial_lr": group["lr"]} for group in groups], lr=recipe.learning_rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the rate of every group to `factor` times its full rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
