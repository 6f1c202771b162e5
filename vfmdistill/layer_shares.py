"""layer_shares: how a step's gradient is divided among the layers of a student."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from vfmdistill.errors import InputError
from vfmdistill.gradients import l1_norms
from vfmdistill.probing import unwrapped


@torch.no_grad()
def layer_shares(
    student: nn.Module, depth: int = 1, extra: Mapping[str, Iterable[nn.Parameter]] | None = None
) -> dict[str, float]:
    """Return 100 × ‖gradient of a group of parameters‖₁ / ‖gradient of all trained parameters‖₁, by group.

    For logs, between backward and the optimizer's step; the scale of the gradients does not matter. Reads the device
    once. Parameters without a gradient count 0. Where gradients are sharded (FSDP2, tensor parallel), every process of
    their mesh must call it.

    Args:
        student: its trained parameters are grouped by the first `depth` parts of their names, those that belong to the
            student itself by their own. A parameter that is shared counts once, in the first group.
        depth: 1 or more.
        extra: further parameters by group, for example {"injectors": distiller.parameters()}.

    Returns:
        Shares in percent that add up to 100, in the order of the student's parameters. All are 0 where there is no
        gradient, all NaN where it is not finite.

    Raises:
        InputError: the depth is below 1, or the student is no module.
    """
    if not isinstance(depth, int) or depth < 1:
        raise InputError(f"depth={depth!r}; expected 1 or more: how many parts of a parameter's name make a group.")
    grouped = [(".".join(name.split(".")[:depth]), one) for name, one in unwrapped(student).named_parameters()]
    grouped += [(name, one) for name, parameters in (extra or {}).items() for one in parameters]
    groups: dict[str, list[nn.Parameter]] = {}
    seen: set[int] = set()
    for name, parameter in grouped:
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            groups.setdefault(name, []).append(parameter)
    norms = l1_norms(list(groups.values())).tolist()
    total = math.fsum(norms) if all(map(math.isfinite, norms)) else math.nan
    return {name: 100 * norm / total if total else 0.0 for name, norm in zip(groups, norms, strict=True)}
