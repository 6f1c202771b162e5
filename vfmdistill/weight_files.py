"""Reading weight files without running any code that they may contain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vfmdistill.errors import WeightsError

ENDINGS = (".safetensors", ".pth", ".pt", ".bin")


def read_weights_file(path: str | Path) -> Any:
    """Return what a weight file holds, on the CPU.

    Args:
        path: a ``.safetensors`` file, or a PyTorch file (``.pth``, ``.pt``, ``.bin``) that holds nothing but tensors
            and plain values.

    Returns:
        A dict of tensors for safetensors; whatever was saved for a PyTorch file.

    Raises:
        WeightsError: the file is missing, has another ending, is damaged, or holds more than tensors and plain values.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsError(f"weights file {str(path)!r} does not exist. Give the path of a {', '.join(ENDINGS)} file.")
    if path.suffix not in ENDINGS:
        raise WeightsError(f"weights file {str(path)!r} ends in {path.suffix!r}; expected one of {', '.join(ENDINGS)}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise errors of many kinds for damaged files
        advice = "It must be undamaged"
        if path.suffix != ".safetensors":
            advice += (
                " and hold tensors and plain values only, since it is read with weights_only=True; re-save its state "
                "dict alone if it holds more"
            )
        raise WeightsError(f"weights file {str(path)!r} could not be read: {_first_line(error)} {advice}.") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
