"""How long the runs of an ablation would take, from a few steps of each arm."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

from detectors.training import assemble
from detectors.training.loaders import plainly, val_loader
from detectors.training.recipe import Recipe
from detectors.training.trainer import Trainer

from .arms import Arm
from .grid import check_arm

_WARMUP = 2  # steps before those that are timed


class Estimate(NamedTuple):
    """What a run of an arm would take on this machine, alone.

    Attributes:
        step_seconds: of a training step, the data's included.
        evaluation_seconds: of one look at all validation images.
        seconds: of the whole run.
    """

    step_seconds: float
    evaluation_seconds: float
    seconds: float


def estimate_arms(recipe: Recipe, arms: Sequence[Arm], *, steps: int = 5) -> Iterator[tuple[Arm, Estimate]]:
    """Train each arm for a few steps in a folder that is removed, and yield what its runs would take.

    With augmentation that changes over the epochs, steps of the first epoch stand for all.

    Args:
        recipe: that all arms share.
        arms: which ones.
        steps: that are timed in each; the median counts.

    Raises:
        DistillError: an arm cannot be built; as when it is trained.
    """
    for arm in arms:
        with TemporaryDirectory() as folder:
            alone = check_arm(recipe, arm, output=Path(folder) / "run", check_data=False)
            with assemble(alone) as trainer:
                yield arm, _estimate(trainer, steps)


def _estimate(trainer: Trainer, steps: int) -> Estimate:
    recipe = trainer.recipe
    step = _step_seconds(trainer, steps)
    evaluation = _evaluation_seconds(trainer)
    evaluations = len({*range(recipe.evaluate_every - 1, recipe.epochs, recipe.evaluate_every), recipe.epochs - 1})
    total = step * len(trainer.train_loader) * recipe.epochs + evaluation * evaluations
    return Estimate(step, evaluation, total)


def _step_seconds(trainer: Trainer, steps: int) -> float:
    trainer.model.train()
    times: list[float] = []
    batches = trainer.train_loader.epoch(0)
    begin = time.perf_counter()
    for number, parts in zip(range(_WARMUP + steps), batches, strict=False):
        trainer.train_step(parts, number)
        trainer.engine.wait()
        now = time.perf_counter()
        times.append(now - begin)
        begin = now
    return median(times[_WARMUP:] or times)


def _evaluation_seconds(trainer: Trainer) -> float:
    """Time two batches, and take the rest for equal."""
    import torch

    loader = val_loader(trainer.val_data, trainer.recipe, trainer.engine.accelerator)
    begin = time.perf_counter()
    seen = 0
    with torch.no_grad():
        for images, _ in plainly(loader):
            trainer.average.model(images.to(trainer.engine.device))
            trainer.engine.wait()
            seen += len(images)
            if seen >= 2 * len(images):
                break
    return (time.perf_counter() - begin) / max(seen, 1) * len(trainer.val_data)
