"""Students by the names that the command line takes."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from vfmdistill.errors import DistillError, InputError, unknown_name

EXPECTED = "timm:NAME, torchvision:NAME, MODULE:FUNCTION (a function of yours that returns the network), or a detector"


def build_student(spec: str) -> tuple[nn.Module, tuple[int, int]]:
    """Build a network with random weights, and say at which size (height, width) it takes its images.

    Args:
        spec: "timm:NAME", "torchvision:NAME", "MODULE:FUNCTION" or the name of a bundled detector. A module is also
            looked for in the current folder; its function is called without arguments.

    Raises:
        UnknownNameError: there is no model of that name; the nearest are listed.
        InputError: the module, or the function in it, cannot be had, or it returns no network.
        DistillError: the package is not installed.
    """
    home, sign, name = spec.partition(":")
    if not sign:
        return _detector(spec)
    if not home or not name or home.startswith("."):
        raise InputError(f"student {spec!r}; expected {EXPECTED}.")
    if home == "timm":
        return _timm(name)
    return _torchvision(name) if home == "torchvision" else _own(home, name)


def _timm(name: str) -> tuple[nn.Module, tuple[int, int]]:
    timm = _package("timm")
    known = timm.list_models()
    if name.partition(".")[0] not in known:  # behind the dot are the weights, which are not needed here
        raise unknown_name("timm model", name, known)
    student: nn.Module = timm.create_model(name, pretrained=False)
    _, height, width = getattr(student, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    return student, (height, width)


def _torchvision(name: str) -> tuple[nn.Module, tuple[int, int]]:
    models = _package("torchvision").models
    known = models.list_models()
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    # Detectors and segmenters take the weights of their backbones apart, and would fetch them.
    options = {"weights": None, "weights_backbone": None}
    takes = inspect.signature(models.get_model_builder(name)).parameters
    student: nn.Module = models.get_model(name, **{key: options[key] for key in options if key in takes})
    return student, _size_inside(student)


def _size_inside(student: nn.Module) -> tuple[int, int]:
    """Return the size to which torchvision's detectors bring their images: at another one strides are not theirs."""
    transform = getattr(student, "transform", None)
    fixed, shorter = getattr(transform, "fixed_size", None), getattr(transform, "min_size", None)
    if fixed is not None:
        width, height = fixed
        return height, width
    return (shorter[-1], shorter[-1]) if shorter else (224, 224)


def _detector(name: str) -> tuple[nn.Module, tuple[int, int]]:
    detectors = _package("detectors")  # by its name: this package knows it from the command line only
    known = detectors.list_models()
    if name not in known:
        raise unknown_name("detector", name, known, f"Other students: {EXPECTED}.")
    student = detectors.build(name, num_classes=80)
    return student, student.spec.input_size


def _own(home: str, name: str) -> tuple[nn.Module, tuple[int, int]]:
    with _current_folder():
        try:
            made: Any = importlib.import_module(home)
        except ImportError as error:
            raise InputError(f"student: module {home!r} cannot be imported ({error}); expected {EXPECTED}.") from error
        for part in name.split("."):
            if not hasattr(made, part):
                raise InputError(f"student: {home!r} has no {name!r}; give a function in it that returns the network.")
            made = getattr(made, part)
        if not isinstance(made, nn.Module):
            made = _called(made, f"{home}:{name}")
    return made, (224, 224)


def _called(make: Any, spec: str) -> nn.Module:
    if not callable(make):
        raise InputError(f"student {spec}: a {type(make).__name__}; expected a function that returns the network.")
    try:
        inspect.signature(make).bind()
    except TypeError as error:
        raise InputError(f"student {spec}: {error}; expected a function that takes no arguments.") from error
    made = make()
    if not isinstance(made, nn.Module):
        raise InputError(f"student {spec} returned a {type(made).__name__}; expected a torch.nn.Module.")
    return made


@contextmanager
def _current_folder() -> Iterator[None]:
    """Import from the current folder too, as `python -m` does and an installed command does not."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DistillError(f"the package {name} is missing, of whose models a student is asked for.") from error
