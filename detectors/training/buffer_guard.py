"""BufferGuard: running statistics that a spoiled forward cannot spoil."""

from __future__ import annotations

import torch
from torch import nn


class BufferGuard:
    """Keeps a copy of the buffers of some modules: batch norms take a NaN into their statistics for good.

    Make it once the modules are on their device. The copies have their own memory, so `save` in every step costs one
    copy of each buffer and waits for nothing.

    Args:
        modules: whose buffers to keep; they must not be replaced later on, only filled.
    """

    def __init__(self, *modules: nn.Module) -> None:
        self._buffers = [buffer.detach() for module in modules for buffer in module.buffers()]
        self._copies = [torch.empty_like(buffer) for buffer in self._buffers]
        self.save()

    @torch.no_grad()
    def save(self) -> None:
        """Remember the buffers as they are."""
        if self._buffers:
            torch._foreach_copy_(self._copies, self._buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Give the buffers the values of the last `save`."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._copies)
