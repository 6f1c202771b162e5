"""Teachers of a run: built by its recipe, and attached to its model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeAlias

import torch

import vfmdistill
from detectors.detector import Detector
from vfmdistill.controls import ShuffledTeacher, random_teacher
from vfmdistill.update import Modulator

from .recipe import Recipe

Teachers: TypeAlias = Mapping[vfmdistill.Teacher, float]

_DTYPES = {"auto": None, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_teachers(recipe: Recipe) -> Teachers:
    """Return a recipe's teachers with their shares of the semantic loss; none if it trains without.

    Raises:
        UnknownNameError: there is no such teacher.
        WeightsError: the weights of one cannot be had or do not fit.
        InputError: a teacher cannot be read out as the recipe wants.
    """
    return {_build(name, recipe): share for name, share in recipe.teachers.items()}


def _build(name: str, recipe: Recipe) -> vfmdistill.Teacher:
    options: dict[str, Any] = {
        "dtype": _DTYPES[recipe.teacher_precision],
        "dense": recipe.teacher_dense,
        "blocks": recipe.teacher_blocks,
    }
    if recipe.teacher_cache is not None:
        # A folder belongs to one teacher with its weights; a random one is another with every seed.
        of_control = {None: "", "shuffled": "-shuffled", "random": f"-random-{recipe.seed}"}[recipe.teacher_control]
        options["cache"] = recipe.teacher_cache / (re.sub(r"[^\w.-]", "_", name) + of_control)
    if recipe.teacher_control == "random":
        return random_teacher(name, seed=recipe.seed, **options)
    kind = ShuffledTeacher if recipe.teacher_control == "shuffled" else vfmdistill.Teacher
    return kind(name, weights=recipe.teacher_weights, **options)


def attach_teachers(
    recipe: Recipe, model: Detector, teachers: Teachers, modulator: Modulator | float
) -> vfmdistill.Distiller:
    """Attach teachers to the model of a run, on whose device it has to be."""
    return vfmdistill.attach(
        model,
        teachers,
        tap=recipe.tap,
        injector=partial(vfmdistill.SemanticInjector, projector=recipe.projector, objective=recipe.objective),
        modulator=modulator,
        every=recipe.teacher_every,
        probe=torch.zeros(1, 3, *recipe.input_size, device=next(model.parameters()).device),
    )


def modulator_of(recipe: Recipe) -> vfmdistill.GradientModulator | vfmdistill.FixedWeight:
    """Return what decides λ in a run."""
    if recipe.rho == "fixed":
        return vfmdistill.FixedWeight(recipe.distill_weight)
    return vfmdistill.GradientModulator(
        weight=recipe.distill_weight,
        rho=recipe.rho,
        delta=None if recipe.rho == "auto" else recipe.delta,
        default_weight=recipe.distill_default_weight,
    )
