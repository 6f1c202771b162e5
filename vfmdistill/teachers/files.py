"""Weights from files: read safely, fitted strictly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vfmdistill.errors import WeightsError
from vfmdistill.weight_files import read_weights_file

_WRAPPERS = ("state_dict", "model_state_dict", "model_ema", "teacher", "model", "module")
_TRAINING_HEADS = ("dino_head.", "ibot_head.")
_PREFIXES = ("_orig_mod.", "module.", "backbone.")
_LISTED = 6


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict on the CPU without running any code that the file may contain.

    A wrapper such as ``{"state_dict": ...}`` or ``{"teacher": ...}``, prefixes shared by all keys and the projection
    heads of a DINO training run are taken away.

    Args:
        path: a ``.safetensors`` file, or a PyTorch file (``.pth``, ``.pt``, ``.bin``).

    Raises:
        WeightsError: the file is missing, has another ending, is damaged, holds more than tensors, or holds none.
    """
    return _bare(read_weights_file(path), path)


def load_strictly(network: nn.Module, state: Mapping[str, Tensor], name: str, origin: str | Path) -> None:
    """Load a state dict into a network; every tensor must find its place.

    Counters of batch norms (``num_batches_tracked``) may be absent, as in files of old PyTorch versions.

    Args:
        network: what to load into.
        state: names and tensors.
        name: the teacher, for the message.
        origin: where the state comes from, for the message.

    Raises:
        WeightsError: some keys are missing, left over, or of another shape; they are listed.
    """
    own = network.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshapen = [
        f"{key} {tuple(tensor.shape)} instead of {tuple(own[key].shape)}"
        for key, tensor in state.items()
        if key in own and tensor.shape != own[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_LISTED])}{', …' if len(keys) > _LISTED else ''}"
        for what, keys in (("missing", missing), ("left over", unexpected), ("of another shape", misshapen))
        if keys
    ]
    if problems:
        raise WeightsError(
            f"the weights in {str(origin)!r} do not fit teacher {name!r}: {'; '.join(problems)}. "
            "Give the file that belongs to this teacher, or the teacher that belongs to this file."
        )
    network.load_state_dict(dict(state), strict=False)


def _bare(content: object, path: str | Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = [content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if not inner:
            break
        content = inner[0]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"weights file {str(path)!r} holds no state dict; expected a mapping from names to tensors.")
    if any(key.startswith("backbone.") for key in tensors):
        tensors = {key: value for key, value in tensors.items() if not key.startswith(_TRAINING_HEADS)}
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors
