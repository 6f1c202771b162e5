"""ForwardHook: follows the forwards of one module, and of no copy of it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class ForwardHook:
    """Calls a function on every forward of a module, until it is removed.

    What activation checkpointing computes again in the backward pass is no forward. A deep copy of the module carries
    no hook. An unpickled module carries one that does nothing and goes with its first forward.

    Args:
        module: it must be called; calling its `forward` feeds no hook.
        react: called with the module's positional arguments and its output.
        before: call it before the forward, with the arguments alone.
    """

    def __init__(self, module: nn.Module, react: Callable[..., None], *, before: bool = False) -> None:
        self._module = module
        self._react = react
        self._hooks: dict[int, Any] = module._forward_pre_hooks if before else module._forward_hooks
        register: Callable[[Any], Any] = module.register_forward_pre_hook if before else module.register_forward_hook
        self._handle = register(self)

    def remove(self) -> None:
        """Take the hook off the module. May be called again."""
        self._handle.remove()
        self._react = _ignore  # which may hold on to this hook, and with it the module

    def __call__(self, module: nn.Module, *values: Any) -> None:
        if module is self._module and not _computes_again():
            self._react(*values)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        copied: dict[int, Any] | None = memo.get(id(self._hooks))
        if copied is not None:
            # What is returned here becomes the copy's hook. The memo ends with the copying, and the hook with the memo.
            end = _End()
            memo[id(end)] = end
            weakref.finalize(end, copied.pop, self._handle.id, None).atexit = False
        return _inert_hook

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _make_inert_hook, ()


class _End:
    """Something whose end can be waited for."""


def _computes_again() -> bool:
    """Whether a backward pass calls for this forward. Compiled code has been recorded, and does not call for it."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _ignore(*values: Any) -> None:
    """React in no way."""


def _inert_hook(module: nn.Module, *values: Any) -> None:
    """Stand for the hook in what was unpickled, and leave."""
    if not torch.compiler.is_compiling():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if hook is _inert_hook]:
                del hooks[key]


def _make_inert_hook() -> Callable[..., None]:
    return _inert_hook
