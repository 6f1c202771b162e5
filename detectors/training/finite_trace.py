"""FiniteTrace: which module is the first to put out something that is not finite, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn


class FiniteTrace:
    """Watches modules, as a context manager, and reads the device after each of them: for looking into one step.

    Args:
        modules: what to watch, with all modules inside, by the name that goes before theirs.

    Attributes:
        output: the first output that is not finite, in words; None while all are. Of modules that end with the same
            output, the innermost one.
        gradient: the same for the gradients of outputs, in the order of the backward, from the losses on.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.output: str | None = None
        self.gradient: str | None = None
        self._modules = modules
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> FiniteTrace:
        for prefix, root in self._modules.items():
            for name, module in root.named_modules(prefix=prefix):
                title = f"{name or 'the whole'} ({type(module).__name__})"

                def watch(module: nn.Module, args: Any, kwargs: Any, output: Any, title: str = title) -> None:
                    self._watch(title, (args, kwargs), output)

                self._handles.append(module.register_forward_hook(watch, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _watch(self, title: str, given: Any, output: Any) -> None:
        for tensor in _floating(output):
            if self.output is None and not tensor.isfinite().all():
                inputs = [faults for value in _floating(given) if (faults := describe_faults(value))]
                whence = f"it was given {inputs[0]}" if inputs else "all that it was given was finite"
                self.output = f"{title}: its output {tuple(tensor.shape)} holds {describe_faults(tensor)}; {whence}"
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._watch_gradient(title, gradient))

    def _watch_gradient(self, title: str, gradient: Tensor) -> None:
        if self.gradient is None and (faults := describe_faults(gradient)):
            self.gradient = f"{title}: the gradient {tuple(gradient.shape)} of its output holds {faults}"


def describe_faults(tensor: Tensor) -> str:
    """Return how many values of a tensor are NaN and how many infinite, in words; empty if all are finite."""
    nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return " and ".join(f"{count} {kind}" for count, kind in ((nan, "NaN"), (infinite, "infinite")) if count)


def _floating(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors inside nested containers."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _floating(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _floating(entry)
