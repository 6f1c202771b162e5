"""What a module is, for tests that it is left as it was."""

from __future__ import annotations

from typing import Any

import torch
from support.students import hooks
from torch import Tensor, nn


def trace(student: nn.Module) -> list[Any]:
    """Return everything about a module but the values of its tensors, in a form that can be compared."""
    modules = [
        (name, type(module).__qualname__, module.training, list(module.__dict__), hooks(module))
        for name, module in student.named_modules()
    ]
    tensors = [
        (name, type(tensor), tensor.requires_grad, tensor.is_leaf, tensor.stride(), tensor.dtype, tensor.grad is None)
        for name, tensor in (*student.named_parameters(), *student.named_buffers())
    ]
    listeners = [
        (name, tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None))
        for name, tensor in student.named_parameters()
    ]
    return [modules, tensors, listeners, list(student.state_dict())]


def tensors_of(student: nn.Module) -> list[Tensor]:
    """Return its parameters and buffers, also those that are in no state dict."""
    return [*student.parameters(), *student.buffers()]


def equal(some: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors are equal one by one, bit by bit."""
    return len(some) == len(others) > 0 and all(map(torch.equal, some, others))
