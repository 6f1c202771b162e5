"""The exceptions of vfmdistill. Each message says what was given, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DistillError(Exception):
    """Base of every error that vfmdistill and the bundled detectors raise on purpose."""


class UnknownNameError(DistillError, ValueError):
    """A teacher, model, tap or option was asked for by a name that does not exist."""


class WeightsError(DistillError, RuntimeError):
    """Weights could not be found, read or fitted to the network that was asked for."""


class CaptureError(DistillError, RuntimeError):
    """The tapped module gave nothing, or something that cannot be aligned with the teacher."""


class InputError(DistillError, ValueError):
    """An argument, a tensor or a file does not fit what the call expects."""


def unknown_name(kind: str, given: str, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """Return an error that names the closest candidates for a name that was not found.

    Args:
        kind: what the name stands for, as it shall read in the message ("teacher", "model", "tap").
        given: the name that was not found.
        known: the names that exist.
        hint: one more sentence, for example how to list all names.
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(given, names, n=5, cutoff=0.4) or names[:5]
    message = f"unknown {kind} {given!r}; nearest: {', '.join(nearest) if nearest else '(none exist)'}."
    return UnknownNameError(f"{message} {hint}".rstrip())
