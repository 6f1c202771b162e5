"""In-place changes: what the layers after a module may do to what it has put out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vfmdistill.adapters.layouts import tensors_in


def versions_of(output: Any) -> list[tuple[Tensor, int]]:
    """Return the tensors of an output with their versions, which count what is written to them."""
    return [(tensor, tensor._version) for _, tensor in tensors_in(output) if not tensor.is_inference()]


def changed(noted: Sequence[tuple[Tensor, int]]) -> bool:
    """Whether any of the tensors was written to since `versions_of`."""
    return any(tensor._version != version for tensor, version in noted)


def cloned(output: Any) -> Any:
    """Return an output with copies of its tensors, their gradients kept; containers of other types stay as they are."""
    if isinstance(output, Tensor):
        return output.clone()
    if type(output) in (list, tuple):
        return type(output)(cloned(part) for part in output)
    return {key: cloned(part) for key, part in output.items()} if type(output) is dict else output
