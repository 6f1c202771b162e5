"""Adapters: where to tap a kind of student and how to read the tap."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import nn

from vfmdistill.adapters.by_path import ByPathAdapter
from vfmdistill.adapters.protocol import ForegroundAdapter, StudentAdapter, Tap
from vfmdistill.errors import InputError

__all__ = [
    "ByPathAdapter",
    "ForegroundAdapter",
    "StudentAdapter",
    "Tap",
    "check_adapter",
    "find_adapter",
    "register_adapter",
]

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
    """Return the student itself if it is an adapter, else the latest registered one that matches, else None."""
    if all(callable(getattr(student, method, None)) for method in ("taps", "feature_map")):
        return cast(StudentAdapter, student)
    return next((adapter for matches, adapter in _registered if matches(student)), None)


def check_adapter(adapter: object) -> None:
    """Raise an InputError unless the object has both methods of `StudentAdapter`."""
    missing = [method for method in ("taps", "feature_map") if not callable(getattr(adapter, method, None))]
    if missing or isinstance(adapter, type):
        raise InputError(
            f"adapter {adapter!r} {'is a class' if isinstance(adapter, type) else f'has no {missing[0]}()'}; expected "
            "an object with taps(student) and feature_map(tap, output, images)."
        )
