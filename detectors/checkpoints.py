"""Weights from files: safely read, and the authors' checkpoints under our names."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detectors.key_maps import IGNORED, UNUSED_EMBEDDING, reference_key
from vfmdistill.errors import WeightsError

if TYPE_CHECKING:
    from detectors.detector import Detector

# Ours that a checkpoint may lack: batch norms that were frozen in the authors' training count no steps.
OPTIONAL = re.compile(r"\.num_batches_tracked$")


@dataclass(frozen=True)
class LoadReport:
    """What `load_reference_checkpoint` did with every tensor."""

    loaded: tuple[str, ...]
    """Our names of the tensors that were filled."""
    ignored: dict[str, str]
    """The authors' names of tensors that were left aside → why."""
    kept: tuple[str, ...]
    """Our names of step counters that the checkpoint does not have; they stay as they are."""


@torch.no_grad()
def load_reference_checkpoint(model: Detector, source: str | Path | Mapping[str, Any]) -> LoadReport:
    """Fill a detector with weights of the authors' RT-DETRv4, DEIM or D-FINE.

    Nothing is changed unless everything fits.

    Args:
        model: the detector of the same name and number of classes.
        source: a file as the authors publish it (their averaged weights are taken where it has them), or its contents,
            or a state dict with their names.

    Raises:
        WeightsError: the file cannot be read, a tensor is missing, left over or of another shape, or the number of
            classes differs.
    """
    given = _state_dict(read_file(source) if isinstance(source, (str, Path)) else source)
    ours = model.state_dict()
    names = {key: reference_key(key) for key in ours}
    missing = [name for key, name in names.items() if name not in given and not OPTIONAL.search(key)]
    rules = IGNORED if model.decoder.denoising_embedding is not None else (*IGNORED, UNUSED_EMBEDDING)
    ignored, left_over = _sort_out(given.keys() - set(names.values()), rules)
    if missing or left_over:
        raise WeightsError(
            f"the checkpoint does not belong to {model.spec.name!r}: {len(missing)} tensors are missing "
            f"(first, in its names: {missing[:5]}), {len(left_over)} are left over (first: {left_over[:5]}). "
            "Build the detector that it was trained as."
        )
    filled = {key: given[name] for key, name in names.items() if name in given}
    _check_shapes(model, filled, ours)
    for key, value in filled.items():
        ours[key].copy_(value)
    return LoadReport(tuple(filled), ignored, tuple(key for key in ours if key not in filled))


def read_file(path: str | Path) -> Any:
    """Return the contents of a .safetensors file or of a torch file that holds nothing but tensors and plain values.

    Raises:
        WeightsError: there is no such file, it is damaged, or it holds code.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(
            f"{path} is damaged, or holds more than tensors and is therefore not read: {reason}"
        ) from error
    except Exception as error:  # safetensors and torch raise many kinds for damaged files
        raise WeightsError(f"{path} cannot be read as a weights file: {type(error).__name__}: {error}") from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a weights file, also where it lies under "model", "state_dict" or the like.

    Raises:
        WeightsError: the file cannot be read, or holds no state dict.
    """
    return _state_dict(read_file(path))


def _state_dict(contents: Any) -> dict[str, Tensor]:
    """Return the state dict in what a file held, averaged weights first."""
    for keys in (("ema", "module"), ("ema",), ("model",), ("state_dict",), ()):
        found = contents
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and found and all(isinstance(value, Tensor) for value in found.values()):
            return dict(found)
    held = sorted(map(str, contents)) if isinstance(contents, Mapping) else type(contents).__name__
    raise WeightsError(
        f"no state dict was found: expected names with tensors, also under 'ema.module' or 'model', got {held}."
    )


def _sort_out(names: set[str], rules: tuple[tuple[str, str], ...]) -> tuple[dict[str, str], list[str]]:
    ignored, left_over = {}, []
    for name in sorted(names):
        reasons = [reason for pattern, reason in rules if re.search(pattern, name)]
        if reasons:
            ignored[name] = reasons[0]
        else:
            left_over.append(name)
    return ignored, left_over


def _check_shapes(model: Detector, filled: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    bias = "decoder.selection.score_head.bias"
    if filled[bias].shape != ours[bias].shape:
        raise WeightsError(
            f"the checkpoint knows {len(filled[bias])} classes, the detector {model.num_classes}: "
            f"build it with num_classes={len(filled[bias])}."
        )
    wrong = [
        f"{reference_key(key)} {tuple(value.shape)} instead of {tuple(ours[key].shape)}"
        for key, value in filled.items()
        if value.shape != ours[key].shape
    ]
    if wrong:
        raise WeightsError(f"{len(wrong)} tensors do not fit {model.spec.name!r}: {'; '.join(wrong[:5])}.")
