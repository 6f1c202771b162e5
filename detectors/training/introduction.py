"""What a run says of itself at its start: on the terminal, and in run.json for its report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import environment

if TYPE_CHECKING:
    from .trainer import Trainer


def known_facts(trainer: Trainer) -> dict[str, Any]:
    """Return the facts of a run that the trainer knows, JSON-able."""
    return {
        "recipe": trainer.recipe.model_dump(mode="json"),
        "stages": trainer.recipe.stages._asdict(),
        "environment": environment.describe(),
        "command": environment.command(),
        "parameter_groups": trainer.groups,
    }


def introduce(trainer: Trainer) -> None:
    """Say how the run begins: groups of parameters, stages, and where it goes on."""
    say, recipe = trainer.monitor.say, trainer.recipe
    for group in trainer.groups:
        say(
            f"{group['name']}: {group['tensors']} tensors, {group['parameters']:,} parameters, learning rate "
            f"{group['learning_rate']:g}, weight decay {group['weight_decay']:g}"
        )
    stages = recipe.stages
    say(
        f"stages of {recipe.epochs} epochs: augmented from {stages.augmented_from}, dense until {stages.dense_until}, "
        f"flat until {stages.flat_until}, plain from {stages.plain_from}"
    )
    if recipe.resume:
        found = "no checkpoint yet, starting" if trainer.step == 0 else "continuing"
        steps = len(trainer.train_loader)
        position = trainer.step - trainer.epoch * steps
        inside = f", step {position} of {steps}" if position else ""
        say(f"{found} with epoch {trainer.epoch} of {recipe.epochs}{inside}")
