"""The teachers that have a name: one visible table, and the registry of those that a user adds."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TypeAlias

from torch import nn

from vfmdistill.errors import InputError, unknown_name
from vfmdistill.teachers import image_rows, text_rows
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.spec import IMAGENET_MEAN, IMAGENET_STD, Backend, PositiveRgb, Rgb, Row, TeacherSpec, spec_of

__all__ = [
    "CATALOG",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Backend",
    "BackendLoader",
    "Loader",
    "PositiveRgb",
    "Rgb",
    "TeacherSpec",
    "list_teachers",
    "loader_for",
    "nearest_ungated",
    "register_teacher",
    "teacher_spec",
]

Loader: TypeAlias = Callable[[TeacherSpec, bool, Path | None], nn.Module]


class BackendLoader(Protocol):
    """Builds the network of a teacher: ``load(spec, pretrained, weights, readout)``."""

    def __call__(
        self, spec: TeacherSpec, pretrained: bool, weights: Path | None, readout: Readout | None = None, /
    ) -> nn.Module:
        """Return a module that maps normalised images to a map, or to a pair of that map and a summary."""
        ...


def _on_timms_hub(row: Row) -> str:
    """timm keeps its copies under their names there, those for "quick" GELU with the ordinary ones."""
    return text_rows.REPOSITORIES.get(row[0]) or f"timm/{row[1].replace('_clip_quickgelu_', '_clip_')}"


_SPECS = (
    *(spec_of(row, "timm", "tokens", _on_timms_hub(row)) for row in image_rows.ROWS),
    *(spec_of(row, "timm", package=image_rows.PACKAGES[row[0]]) for row in image_rows.PACKAGED_ROWS),
    *(spec_of(row, "timm", "tokens", _on_timms_hub(row)) for row in text_rows.ROWS),
    *(spec_of(row, "timm", "value", _on_timms_hub(row)) for row in text_rows.CLASS_TOKEN_ROWS),
    *(spec_of(row, "open_clip", "value", text_rows.REPOSITORIES[row[0]]) for row in text_rows.OPEN_CLIP_ROWS),
    *(spec_of(row, "open_clip", "tokens", text_rows.REPOSITORIES[row[0]]) for row in text_rows.OPEN_CLIP_DENSE_ROWS),
)
CATALOG: dict[str, TeacherSpec] = {spec.name: spec for spec in _SPECS}

_HINT = (
    "list_teachers() returns all names; timm:MODEL, open_clip:MODEL/TAG and hf:OWNER/NAME or hf:FOLDER take any "
    "model of timm, open_clip and transformers that gives a map."
)

_registered: dict[str, tuple[TeacherSpec, Loader]] = {}


def list_teachers(filter: str = "*") -> list[str]:
    """Return the sorted names of all teachers that match a shell-style pattern, for example ``"dinov2_*"``."""
    return sorted(fnmatch.filter([*CATALOG, *_registered], filter))


def teacher_spec(name: str) -> TeacherSpec:
    """Return what is known about a teacher.

    Args:
        name: a name of the catalogue, a registered one, or any model of a backend: ``timm:MODEL``,
            ``open_clip:MODEL/TAG``, ``hf:OWNER/NAME`` or ``hf:FOLDER`` for transformers. No weights are downloaded;
            transformers needs the repository's ``config.json`` and ``preprocessor_config.json``.

    Raises:
        UnknownNameError: no teacher has that name; the nearest ones are listed.
        InputError: the model cannot give a map, or its files do not say what it expects.
        WeightsError: its configuration is not on this machine and cannot be had.
    """
    if name in _registered:
        return _registered[name][0]
    if name in CATALOG:
        return CATALOG[name]
    if name.startswith("timm:"):
        from vfmdistill.teachers import timm_backend

        return timm_backend.describe(name)
    if name.startswith("open_clip:"):
        from vfmdistill.teachers import open_clip_backend

        return open_clip_backend.describe(name)
    if name.startswith("hf:"):
        from vfmdistill.teachers import transformers_backend

        return transformers_backend.describe(name)
    raise unknown_name("teacher", name, [*CATALOG, *_registered], _HINT)


def nearest_ungated(spec: TeacherSpec) -> TeacherSpec:
    """Return the teacher of the catalogue to take where the weights of another are gated.

    The same family from another place comes first, then the size, or the name where the size is not known. Where a row
    of the catalogue turns out to be gated, so may be the others under its licence.
    """
    others = [other for other in CATALOG.values() if not other.gated and other.name != spec.name]
    if spec.name in CATALOG:
        others = [other for other in others if other.license != spec.license]

    def distance(other: TeacherSpec) -> tuple[bool, bool, float]:
        kin = other.family.rstrip("0123456789") == spec.family.rstrip("0123456789")
        tail = spec.name.split("/")[-1].replace("-", "_")[: len(other.name)]
        alike = difflib.SequenceMatcher(None, other.name, tail).ratio()
        size = abs(math.log(other.params / spec.params)) if spec.params else -alike
        return other.family != spec.family, not kin, size

    return min(others, key=distance)


def register_teacher(spec: TeacherSpec, loader: Loader) -> None:
    """Give a teacher of your own a name, for this process.

    Registering the same name again replaces it, so that a notebook cell can run twice; the names of the built-in
    catalogue are taken.

    Args:
        spec: what the teacher is. Images reach it normalised with its mean and std, resized to grid × patch_size.
        loader: ``loader(spec, pretrained, weights)`` returns a module that maps (N, 3, H, W) to (N, embed_dim, h, w),
            or to a pair of that map and a summary (N, C). ``weights`` is a path or None.

    Raises:
        InputError: the name belongs to the built-in catalogue or has a colon, which is kept for backends.
    """
    if spec.name in CATALOG or ":" in spec.name:
        reason = "is a built-in teacher" if spec.name in CATALOG else "has a colon, which is kept for backends"
        raise InputError(f"cannot register teacher {spec.name!r}: the name {reason}. Give the spec another name.")
    _registered[spec.name] = (spec, loader)


def loader_for(spec: TeacherSpec) -> BackendLoader:
    """Return the function that builds the network of a teacher, called with (spec, pretrained, weights, readout).

    Raises:
        InputError: nothing can build it; or, when that function is called, a registered teacher is asked for another
            readout than its own.
    """
    if spec.name in _registered:
        return partial(_load_registered, _registered[spec.name][1])
    if spec.backend == "timm":
        from vfmdistill.teachers import timm_backend

        return timm_backend.load
    if spec.backend == "open_clip":
        from vfmdistill.teachers import open_clip_backend

        return open_clip_backend.load
    if spec.backend == "transformers":
        from vfmdistill.teachers import transformers_backend

        return transformers_backend.load
    raise InputError(
        f"teacher {spec.name!r} has the backend {spec.backend!r}, which has no weights of its own. "
        "Give Teacher the module itself, or register the spec together with a loader by register_teacher()."
    )


def _load_registered(
    loader: Loader, spec: TeacherSpec, pretrained: bool, weights: Path | None, readout: Readout | None = None, /
) -> nn.Module:
    if readout not in (None, Readout()):
        raise InputError(
            f"teacher {spec.name!r} is registered with a loader of its own, which decides what it gives; "
            "dense= and blocks= have no meaning for it. Drop them."
        )
    return loader(spec, pretrained, weights)
