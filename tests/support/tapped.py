"""What a built-in adapter takes from a student in one training forward, for the tests of the adapters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill.adapters import find_adapter
from vfmdistill.student_maps import StudentMaps


@dataclass(frozen=True)
class Tapped:
    """The name of the adapter, the path of its tap, the map that it read, and the share of the student in the tap."""

    adapter: str
    path: str
    feature_map: Tensor
    share: float


def tapped(student: nn.Module, images: Tensor, forward: Callable[[], Any] | None = None) -> Tapped:
    """Read the tap that `attach` would take; the map must pass its gradient on to the tap."""
    adapter = find_adapter(student)
    assert adapter is not None
    (tap,) = adapter.taps(student)
    assert student.get_submodule(tap.path) is tap.module
    maps = StudentMaps(student, adapter, [tap])
    try:
        student.train()
        if forward is None:
            student(images)
        else:
            forward()
        (feature_map,) = maps.take(images)
    finally:
        maps.remove()
    parameters = [parameter for parameter in tap.module.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(feature_map.square().sum(), parameters, retain_graph=True, allow_unused=True)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    size = sum(parameter.numel() for parameter in student.parameters())
    return Tapped(type(adapter).__name__, tap.path, feature_map, sum(p.numel() for p in parameters) / size)
