"""Preflight: what would make every run of an arm fail is said before the first one begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detectors.data.layout import locate_split
from detectors.training.recipe import Recipe
from vfmdistill.errors import InputError
from vfmdistill.teachers.catalog import teacher_spec

from .arms import Arm
from .grid import check_arm


def check_ablation(recipe: Recipe, arms: Sequence[Arm]) -> None:
    """Raise for data, teachers and weights that are not there, and for batches that no map can be shuffled in.

    Args:
        recipe: that all arms share.
        arms: of the ablation.

    Raises:
        InputError: there is no such data set or file, the output is a file, or a batch is too small.
        UnknownNameError: there is no such teacher.
    """
    if recipe.output.exists() and not recipe.output.is_dir():
        raise InputError(f"the output {recipe.output} is a file; name a folder with --output.")
    if recipe.data is None:
        raise InputError("the recipe names no data: give the folder of a data set by --data.")
    for split in ("train", "val"):
        locate_split(recipe.data, split)
    for arm in arms:
        own = check_arm(recipe, arm)
        for name in own.teachers:
            teacher_spec(name)
        for file in (own.teacher_weights, own.weights, own.init, own.backbone_weights):
            _check_exists(arm, file)
        if own.teacher_control == "shuffled" and isinstance(own.batch_size, int) and own.batch_size < 4:
            raise InputError(
                f"arm {arm.name}: batches of {own.batch_size}, in which maps cannot be given to other images; expected "
                "at least 4. Take a larger --batch-size, or leave out the control."
            )


def _check_exists(arm: Arm, file: Path | None) -> None:
    if file is not None and not file.exists():
        raise InputError(f"arm {arm.name}: there is no file {file}; expected local weights.")
