"""Reading weight files without running any code that they may contain."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from vfmdistill.errors import WeightsError

# The last is that of .pth.tar, which has nothing to do with archives.
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")


def read_weights_file(path: str | Path) -> Any:
    """Return what a weight file holds, on the CPU.

    Args:
        path: a ``.safetensors`` file, or a PyTorch file (``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.pth.tar``) that
            holds nothing but tensors, plain values and the parsed arguments of a command line, which training scripts
            like to add.

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
        with torch.serialization.safe_globals([argparse.Namespace]):  # which has attributes and no code
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise errors of many kinds for damaged files
        advice = "It must be undamaged"
        if path.suffix != ".safetensors":
            advice += (
                " and hold tensors and plain values only, since it is read with weights_only=True; re-save its state "
                "dict alone if it holds more"
            )
        raise WeightsError(f"weights file {str(path)!r} could not be read: {_reason(error)}. {advice}.") from error


def _reason(error: Exception) -> str:
    """What went wrong, without PyTorch's advice to read the file in the unsafe way."""
    foreign = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    if foreign:
        return f"it holds {foreign[1]}, which is neither a tensor nor a plain value"
    _, _, refusal = str(error).rpartition("WeightsUnpickler error: ")
    if refusal.lstrip().startswith("Unsupported operand"):  # what text looks like to an unpickler
        return "it is not in PyTorch's format"
    sentence = (refusal.strip().splitlines() or [""])[0].split(". ")[0]
    return sentence.rstrip(". ") or type(error).__name__
