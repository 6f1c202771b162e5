"""Noticing that a network's weights may have become others."""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn


class TensorWatch:
    """What the parameters and buffers of a network are at a moment, to be compared with what they are later.

    Tensors that were replaced, cast, moved or changed in place are noticed, without reading them. A change through
    ``.data``, which PyTorch does not count, is not. A copy watches nothing, as its network has tensors of its own.
    """

    def __init__(self, network: nn.Module) -> None:
        tensors = [*_tensors(network)]
        self._state = [_state(tensor) for tensor in tensors]
        self._kept = [tensor.detach() for tensor in tensors]  # so that no other tensor comes to their addresses

    def holds(self, network: nn.Module) -> bool:
        """Whether the network still has these tensors, unchanged."""
        return self._state == [_state(tensor) for tensor in _tensors(network)]

    def __reduce__(self) -> tuple[type[TensorWatch], tuple[nn.Module]]:
        return TensorWatch, (nn.Module(),)


def _tensors(network: nn.Module) -> itertools.chain[Tensor]:
    return itertools.chain(network.parameters(), network.buffers())


def _state(tensor: Tensor) -> tuple[Any, ...]:
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.shape, tensor.stride()
