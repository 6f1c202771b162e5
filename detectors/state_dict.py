"""The state dict in a file or in what a file held."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vfmdistill.errors import WeightsError
from vfmdistill.weight_files import read_weights_file

_WRAPPERS = ("module.", "_orig_mod.", "module.")  # what data parallelism and compilation put before all names


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a weights file, also where it lies under "model", "state_dict" or the like.

    Raises:
        WeightsError: the file cannot be read, or holds no state dict.
    """
    return find_state_dict(read_weights_file(path))


def find_state_dict(contents: Any) -> dict[str, Tensor]:
    """Return the state dict in what a file held, averaged weights first.

    Raises:
        WeightsError: there is none.
    """
    for keys in (("ema", "module"), ("ema",), ("model",), ("state_dict",), ("model_state_dict",), ()):
        found = contents
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values()):
            tensors = dict(found)
            for prefix in _WRAPPERS:
                if all(name.startswith(prefix) for name in tensors):
                    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
            return tensors
    held = sorted(map(str, contents)) if isinstance(contents, Mapping) else type(contents).__name__
    raise WeightsError(
        f"no state dict was found: expected names with tensors, also under 'ema.module' or 'model', got {held}."
    )
