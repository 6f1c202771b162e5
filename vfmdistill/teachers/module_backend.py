"""Teachers that a user brings as modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vfmdistill.errors import InputError
from vfmdistill.teachers.precision import outside_autocast
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.spec import TeacherSpec

_PROBE_SIZE = 224  # pixels; the size that most networks for images can take


def check_options(weights: object, readout: Readout) -> None:
    """Raise an InputError if options of `Teacher` are given that a module decides itself."""
    if weights is not None:
        raise InputError("weights= goes with a teacher's name; load them into the module before giving it.")
    if readout != Readout():
        raise InputError("dense=, blocks= and merge= go with a teacher's name; a module decides itself what it gives.")


def describe(module: nn.Module, dtype: torch.dtype, device: torch.device | None) -> TeacherSpec:
    """Return the spec of a module, which is run once on a black image to see what map it gives.

    Args:
        module: maps (1, 3, 224, 224) to (1, C, h, w), or to a pair of that map and a summary.
        dtype: of the image.
        device: of the image; None is the CPU.

    Raises:
        InputError: the module cannot be run on such an image or gives no map.
    """
    name = type(module).__name__
    device = device or torch.device("cpu")
    try:
        with torch.no_grad(), outside_autocast(device):
            output = module(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE, dtype=dtype, device=device))
    except Exception as error:
        raise InputError(
            f"module {name} could not be run on an image of shape (1, 3, {_PROBE_SIZE}, {_PROBE_SIZE}): {error}. "
            'If it needs another size, give spec=TeacherSpec(backend="module", patch_size=..., embed_dim=..., ...).'
        ) from error
    feature_map, _ = as_pair(output)
    return TeacherSpec(
        name=name,
        family="module",
        backend="module",
        model_id=f"{type(module).__module__}.{type(module).__qualname__}",
        patch_size=max(1, _PROBE_SIZE // feature_map.shape[-2]),
        embed_dim=feature_map.shape[1],
        params=sum(parameter.numel() for parameter in module.parameters()),
    )


def as_pair(output: object) -> tuple[Tensor, Tensor | None]:
    """Return map and summary of what a network gave, which may be the map alone.

    Raises:
        InputError: it is neither.
    """
    feature_map, summary = output if isinstance(output, tuple) and len(output) == 2 else (output, None)
    if not isinstance(feature_map, Tensor) or feature_map.ndim != 4 or 0 in feature_map.shape:
        raise InputError(
            "a teacher's network must return a map (N, C, h, w), or it and a summary; it gave "
            f"{_described(feature_map)}."
        )
    if summary is not None and not (
        isinstance(summary, Tensor) and summary.ndim == 2 and len(summary) == len(feature_map)
    ):
        raise InputError(
            f"the summary of a teacher's network must be (N, D), here N = {len(feature_map)}, or None; it gave "
            f"{_described(summary)}."
        )
    return feature_map, summary


def _described(output: object) -> str:
    return f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
