"""Adapters: where to tap a kind of student and how to read the tap."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

from torch import nn

from vfmdistill.adapters.by_path import ByPathAdapter
from vfmdistill.adapters.protocol import ForegroundAdapter, StudentAdapter, Tap
from vfmdistill.errors import InputError

__all__ = [
    "BUILT_IN",
    "ByPathAdapter",
    "ForegroundAdapter",
    "StudentAdapter",
    "Tap",
    "check_adapter",
    "find_adapter",
    "register_adapter",
]

# Students of packages that need not be installed: where their classes are defined, and the adapter to ask. An adapter
# that does not know a student says so by matches(), and the next row is asked.
BUILT_IN: tuple[tuple[str, str], ...] = (
    ("timm.models", "vfmdistill.adapters.timm:TimmAdapter"),
    ("transformers.models", "vfmdistill.adapters.transformers:TransformersAdapter"),
    ("ultralytics", "vfmdistill.adapters.ultralytics:UltralyticsAdapter"),
    ("segmentation_models_pytorch", "vfmdistill.adapters.segmentation_models:SegmentationModelsAdapter"),
    ("torchvision.models.detection", "vfmdistill.adapters.torchvision:TorchvisionDetector"),
    ("torchvision.models.segmentation", "vfmdistill.adapters.torchvision:TorchvisionSegmenter"),
    ("torchvision.models", "vfmdistill.adapters.torchvision:TorchvisionClassifier"),
)

_registered: list[tuple[Callable[[nn.Module], bool], StudentAdapter]] = []


def register_adapter(matches: type[nn.Module] | Callable[[nn.Module], bool], adapter: StudentAdapter) -> None:
    """Make `attach` use an adapter for every student that matches; the latest registration comes first.

    Args:
        matches: a class of students, or a function that says whether a student is one of them.
        adapter: anything with the two methods of `StudentAdapter`.

    Raises:
        InputError: the adapter lacks one of the methods.
    """
    check_adapter(adapter)
    if isinstance(matches, type):
        kind = matches
        _registered.insert(0, (lambda student: isinstance(student, kind), adapter))
    else:
        _registered.insert(0, (matches, adapter))


def find_adapter(student: nn.Module) -> StudentAdapter | None:
    """Return who knows where to tap a student, or None.

    That is the student itself if it has the two methods of `StudentAdapter`, else the latest registered adapter that
    matches, else the first of `BUILT_IN` that does. A student belongs to a package if its class or one that it inherits
    from is defined there; nothing of the package is imported to find out.
    """
    if all(callable(getattr(student, method, None)) for method in ("taps", "feature_map")):
        return cast(StudentAdapter, student)
    registered = next((adapter for matches, adapter in _registered if matches(student)), None)
    return _built_in(student) if registered is None else registered


def _built_in(student: nn.Module) -> StudentAdapter | None:
    homes = [f"{kind.__module__}." for kind in type(student).__mro__]
    for prefix, target in BUILT_IN:
        if any(home.startswith(f"{prefix}.") for home in homes):
            module, _, name = target.partition(":")
            adapter: Any = getattr(import_module(module), name)()
            if adapter.matches(student):
                return cast(StudentAdapter, adapter)
    return None


def check_adapter(adapter: object) -> None:
    """Raise an InputError unless the object has both methods of `StudentAdapter`."""
    missing = [method for method in ("taps", "feature_map") if not callable(getattr(adapter, method, None))]
    if missing or isinstance(adapter, type):
        raise InputError(
            f"adapter {adapter!r} {'is a class' if isinstance(adapter, type) else f'has no {missing[0]}()'}; expected "
            "an object with taps(student) and feature_map(tap, output, images)."
        )
