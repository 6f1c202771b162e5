"""The teachers that students are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

import vfmdistill
from detectors.training.recipe import Recipe
from detectors.training.teaching import build_teachers
from vfmdistill.errors import InputError

from .probe_runs import ProbedRun


def named_teachers(names: Sequence[str], weights: Sequence[str]) -> dict[str, vfmdistill.Teacher]:
    """Return teachers by name, in float32.

    Args:
        names: as `vfmdistill.Teacher` takes them; "none" alone stands for no teacher.
        weights: local files, TEACHER=FILE.

    Raises:
        InputError: weights of no teacher.
        UnknownNameError: there is no such teacher.
        WeightsError: the weights cannot be had or do not fit.
    """
    if list(names) == ["none"]:
        names = []
    files: dict[str, Path] = {}
    for text in weights:
        name, _, file = text.partition("=")
        if not file or name not in names:
            raise InputError(f"teacher weights {text!r}; expected TEACHER=FILE with one of --teachers.")
        files[name] = Path(file)
    return {name: vfmdistill.Teacher(name, weights=files.get(name), dtype=torch.float32) for name in names}


def teachers_of(runs: Iterable[ProbedRun]) -> dict[str, vfmdistill.Teacher]:
    """Return the teachers that runs had, by name, read out as theirs were, but in float32; controls teach nothing.

    Raises:
        InputError: a recipe is of another version, or two runs read one teacher out differently.
        UnknownNameError: there is no such teacher.
        WeightsError: the weights cannot be had or do not fit.
    """
    ways: dict[str, tuple[object, Recipe]] = {}
    for run in runs:
        if not run.settings.get("teacher") or run.settings.get("teacher_control"):
            continue
        recipe = run.recipe
        way = (recipe.teacher_weights, recipe.teacher_dense, recipe.teacher_blocks)
        for name in recipe.teachers:
            if ways.setdefault(name, (way, recipe))[0] != way:
                raise InputError(
                    f"the runs read teacher {name!r} out in several ways; say by --teachers which one to compare with."
                )
    plainly = {"teacher_precision": "fp32", "teacher_cache": None}
    return {
        name: teacher
        for name, (_, recipe) in ways.items()
        for teacher in build_teachers(recipe.model_copy(update={"teacher": name, **plainly}))
    }
