"""SizeCache: tensors that follow from sizes alone, computed once for every size that comes along."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class SizeCache:
    """Remembers what was computed for a key, typically (sizes, device, dtype).

    An attribute of this type is neither parameter nor buffer, and copies and pickles of it start empty.

    Args:
        capacity: how many entries are kept; the oldest goes first.
    """

    def __init__(self, capacity: int = 32) -> None:
        self.capacity = capacity
        self._entries: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the entry of `key`, made by `make` the first time."""
        # What a compiler or exporter traces must stay inside its graph.
        if torch.compiler.is_compiling():
            return make()
        if key not in self._entries:
            # Tensors born in inference mode could not take part in a later training step.
            with torch.inference_mode(False), torch.no_grad():
                entry = make()
            while len(self._entries) >= self.capacity:
                self._entries.pop(next(iter(self._entries)))
            self._entries[key] = entry
        found: T = self._entries[key]
        return found

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type[SizeCache], tuple[int]]:
        return SizeCache, (self.capacity,)
