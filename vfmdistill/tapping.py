"""Tapping: finds the taps of a student and how wide their maps are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vfmdistill.adapters import ByPathAdapter, StudentAdapter, Tap, check_adapter, find_adapter
from vfmdistill.capture import probe_outputs
from vfmdistill.errors import CaptureError, InputError


def probe_images(student: nn.Module) -> Tensor:
    """Return one image of zeros, 224 × 224, as the student's parameters are.

    Raises:
        InputError: it has none in floating point.
    """
    parameter = next((p for p in student.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise InputError("the student has no floating-point parameters; pass a batch that it takes as probe=.")
    return torch.zeros(1, 3, 224, 224, device=parameter.device, dtype=parameter.dtype)


def adapter_and_taps(
    student: nn.Module, adapter: StudentAdapter | None, tap: str | Sequence[str] | None, images: Tensor
) -> tuple[StudentAdapter, tuple[Tap, ...]]:
    """Return who reads the student, and its taps, as the arguments of `attach` of the same names say.

    Raises:
        UnknownNameError: the student has no module of that path.
        InputError: no tap is given and no adapter knows one.
    """
    if adapter is None:
        adapter = find_adapter(student)
    else:
        check_adapter(adapter)
    if tap is not None:
        by_path = ByPathAdapter([tap] if isinstance(tap, str) else tap)
        return by_path if adapter is None else adapter, by_path.taps(student)
    if adapter is None:
        raise InputError(
            f"no tap is given and no adapter knows a {type(student).__name__}. Pass tap=, the path of the module to "
            f"align{_candidates(student, images)}; or pass adapter=."
        )
    taps = tuple(adapter.taps(student))
    if not taps:
        raise InputError(f"the adapter {type(adapter).__name__} names no tap for a {type(student).__name__}.")
    return adapter, taps


def _candidates(student: nn.Module, images: Tensor) -> str:
    """Say which modules give maps of stride 16 to 32, the outermost first, then the deepest."""
    modules = {path: module for path, module in student.named_modules() if path}
    reader = ByPathAdapter(())
    found: list[tuple[str, str]] = []
    for path, output in probe_outputs(student, modules, images).items():
        try:
            _, channels, height, width = reader.feature_map(Tap(path, modules[path]), output, images).shape
        except CaptureError:
            continue
        if 16 <= images.shape[-2] / height <= 32:
            found.insert(0, (path, f"{path!r} ({channels} × {height} × {width})"))
    found.sort(key=lambda candidate: candidate[0].count("."))
    return f", for example {', '.join(text for _, text in found[:6])}" if found else ""


def student_dims(student: nn.Module, adapter: StudentAdapter, taps: Sequence[Tap], images: Tensor) -> list[int]:
    """Return the channels of each tap's map, found by a forward of the images.

    Raises:
        CaptureError: a tap does not fire, or gives nothing that can be read as a map.
        InputError: the student fails on the images.
    """
    outputs = probe_outputs(student, {tap.path: tap.module for tap in taps}, images)
    silent = [tap.path for tap in taps if tap.path not in outputs]
    if silent:
        raise CaptureError(
            f"tap {silent[0]!r} did not fire when the student ran; expected a module that every forward calls (calling "
            "its forward() only is no call). Tap another module."
        )
    dims = []
    for tap in taps:
        feature_map = adapter.feature_map(tap, outputs[tap.path], images)
        if feature_map.ndim != 4 or feature_map.shape[0] != images.shape[0]:
            raise CaptureError(
                f"the adapter {type(adapter).__name__} read a tensor of shape {tuple(feature_map.shape)} from tap "
                f"{tap.path!r} for images {tuple(images.shape)}; expected a map ({images.shape[0]}, C, h, w)."
            )
        dims.append(feature_map.shape[1])
    return dims
