"""Tapping: finds the taps of a student and how wide their maps are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor, nn

from vfmdistill.adapters import ByPathAdapter, StudentAdapter, Tap, check_adapter, find_adapter
from vfmdistill.capture import probe_outputs
from vfmdistill.errors import CaptureError, InputError
from vfmdistill.inspection import inspect_with


def adapter_and_taps(
    student: nn.Module, adapter: StudentAdapter | None, tap: str | Sequence[str] | None, images: Tensor
) -> tuple[StudentAdapter, tuple[Tap, ...]]:
    """Return who reads the student, and its taps, as the arguments of `attach` of the same names say.

    Raises:
        UnknownNameError: the student has no module of that path.
        InputError: no tap is given, no adapter knows one, and no module fits.
    """
    if adapter is None:
        adapter = find_adapter(student)
    else:
        check_adapter(adapter)
    if tap is not None:
        by_path = ByPathAdapter([tap] if isinstance(tap, str) else tap)
        return by_path if adapter is None else adapter, by_path.taps(student)
    if adapter is None:
        adapter = _by_inspection(student, images)
    taps = tuple(adapter.taps(student))
    if not taps:
        raise InputError(f"the adapter {type(adapter).__name__} names no tap for a {type(student).__name__}.")
    return adapter, taps


def _by_inspection(student: nn.Module, images: Tensor) -> ByPathAdapter:
    """Return an adapter for the tap that `inspect` chooses, and warn that it did.

    Raises:
        InputError: no module fits.
    """
    inspection = inspect_with(student, images)
    kind = type(student).__name__
    if not inspection.chosen:
        raise InputError(
            f"no tap is given, no adapter knows a {kind}, and {inspection.reason} vfmdistill.inspect(student) lists "
            "all candidates for tap=."
        )
    chosen = inspection.chosen[0]
    warnings.warn(
        f"no tap is given and no adapter knows a {kind}, so attach takes tap={chosen.path!r} ({chosen.type}, "
        f"{' × '.join(map(str, chosen.shape))} {chosen.layout}): {inspection.reason} Give tap= to say so, or another.",
        stacklevel=4,
    )
    return ByPathAdapter([chosen.path])


def student_dims(
    student: nn.Module, adapter: StudentAdapter, taps: Sequence[Tap], images: Tensor
) -> tuple[list[int], list[Tap]]:
    """Return the channels of each tap's map, and the taps whose output is changed in place, by a forward of the images.

    Raises:
        CaptureError: a tap does not fire, or gives nothing that can be read as a map.
        InputError: the student fails on the images.
    """
    overwritten: set[str] = set()
    outputs = probe_outputs(student, {tap.path: tap.module for tap in taps}, images, overwritten)
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
    return dims, [tap for tap in taps if tap.path in overwritten]
