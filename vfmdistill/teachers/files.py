"""Weights from files: read safely, fitted strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from vfmdistill.errors import WeightsError
from vfmdistill.teachers.nearest_fit import nearest_fit
from vfmdistill.teachers.shards import read_weights

# In the order of preference: averaged weights are those that are published and measured.
_WRAPPERS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "state_dict",
    "model_state_dict",
    "model_state",
    "teacher",
    "model",
    "module",
    "weights",
)
# What PyTorch puts into names: by `compile`, fully sharded training and activation checkpointing.
_WRAPPED = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
_PREFIXES = ("module.", "timm_model.")
# In self-supervised training, the averaged network is the one to take.
_AVERAGED = ("teacher.", "model_ema.")
_TRAINING_HEADS = ("dino_head.", "ibot_head.", "head.")
_LISTED = 6


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict on the CPU without running any code that the file may contain.

    A wrapper such as ``{"state_dict": ...}`` or ``{"teacher": ...}`` and prefixes shared by all keys are taken away;
    so are, in a checkpoint of DINO's training, the student and the projection heads.

    Args:
        path: a ``.safetensors`` file; a PyTorch file (``.pth``, ``.pt``, ``.bin``, ``.ckpt``, ``.pth.tar``); the
            ``.index.json`` of weights in several files; or a folder as transformers' `save_pretrained` makes it.

    Raises:
        WeightsError: the file is missing, has another ending, is damaged, holds more than tensors, or holds none.
    """
    return _bare(read_weights(path), path)


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
        unknown = " None of their names is known here." if state.keys().isdisjoint(own) else ""
        raise WeightsError(
            f"the weights in {str(origin)!r} do not fit teacher {name!r}: {'; '.join(problems)}.{unknown} "
            "Give the file that belongs to this teacher, or the teacher that belongs to this file."
            f"{nearest_fit(state, name)}"
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
        tensors = {_WRAPPED.sub("", str(key)): value for key, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"weights file {str(path)!r} holds no state dict; expected a mapping from names to tensors.")
    tensors = _without(_PREFIXES, tensors)
    averaged = next((part for part in _AVERAGED if any(key.startswith(f"{part}backbone.") for key in tensors)), None)
    if averaged is not None:
        tensors = {key.removeprefix(averaged): value for key, value in tensors.items() if key.startswith(averaged)}
    if any(key.startswith("backbone.") for key in tensors):
        tensors = {key: value for key, value in tensors.items() if not key.startswith(_TRAINING_HEADS)}
    return _without(("backbone.",), tensors)


def _without(prefixes: tuple[str, ...], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take away those prefixes that all keys share, however they are nested."""
    shared = next((prefix for prefix in prefixes if all(key.startswith(prefix) for key in tensors)), None)
    if shared is None:
        return tensors
    return _without(prefixes, {key.removeprefix(shared): value for key, value in tensors.items()})
