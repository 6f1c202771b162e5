"""Snapshot: everything that a run needs to go on exactly as if it had never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import vfmdistill
from vfmdistill.errors import InputError

from .checkpoint import (
    load_optimizer_tensors,
    optimizer_tensors,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)

if TYPE_CHECKING:
    from .trainer import Trainer

FOLDER = "checkpoints"

# Settings that do not decide what a run computes: a resumed run may change them.
_FREE = {
    "output",
    "resume",
    "data",
    "teacher_weights",
    "pretrained_backbone",
    "workers",
    "device",
    "keep_checkpoints",
    "log_every",
}


def save(trainer: Trainer, *, improved: bool) -> None:
    """Write the trainer's checkpoint of the epoch that just ended, and the best one if it is the best.

    Random generators are not in it: every epoch seeds them from the recipe's seed, the epoch and the rank.
    """
    folder, epoch = trainer.checkpoints, trainer.epoch - 1
    tensors = {
        "model": trainer.model.state_dict(),
        "ema": trainer.average.model.state_dict(),
        "optimizer": optimizer_tensors(trainer.optimizer),
    }
    state: dict[str, Any] = {
        "format": 1,
        "model": trainer.recipe.model,
        "class_names": trainer.model.class_names,
        "category_ids": trainer.category_ids,
        "recipe": trainer.recipe.model_dump(mode="json"),
        "epoch": epoch,
        "step": trainer.step,
        "ema_updates": trainer.average.updates,
        "best": trainer.best,
        "figures": trainer.figures,
        "versions": {"vfmdistill": vfmdistill.__version__, "torch": torch.__version__},
    }
    if trainer.accelerator.scaler is not None:
        state["grad_scaler"] = trainer.accelerator.scaler.state_dict()
    if trainer.distiller is not None:
        distilled = trainer.distiller.state_dict()
        tensors["injectors"] = distilled["injectors"]
        state["modulator"] = distilled["modulator"]
        state["teacher"] = trainer.recipe.teacher
    write_checkpoint(folder, f"epoch_{epoch:04d}", tensors, state)
    prune_checkpoints(folder, trainer.recipe.keep_checkpoints)
    if improved:
        best = write_checkpoint(folder, f"best_{epoch:04d}", {"ema": tensors["ema"]}, state)
        for older in folder.glob("best_*"):
            if older != best:
                shutil.rmtree(older)


def restore(trainer: Trainer, path: Path) -> None:
    """Put a checkpoint that `save` wrote back into a trainer that was built from the same recipe.

    Raises:
        InputError: the checkpoint is damaged, or belongs to other classes or settings; the message says which.
    """
    tensors, state = read_checkpoint(path)
    _check_fits(trainer, state, path)
    trainer.model.load_state_dict(tensors["model"])
    trainer.average.model.load_state_dict(tensors["ema"])
    load_optimizer_tensors(trainer.optimizer, tensors["optimizer"])
    if trainer.distiller is not None:
        trainer.distiller.load_state_dict({"injectors": tensors["injectors"], "modulator": state["modulator"]})
    if trainer.accelerator.scaler is not None and "grad_scaler" in state:
        trainer.accelerator.scaler.load_state_dict(state["grad_scaler"])
    trainer.epoch, trainer.step = state["epoch"] + 1, state["step"]
    trainer.average.updates = state["ema_updates"]
    trainer.best, trainer.figures = state["best"], state["figures"]


def _check_fits(trainer: Trainer, state: dict[str, Any], path: Path) -> None:
    problems = []
    if (stored := state["class_names"]) != (given := trainer.model.class_names):
        problems.append(f"classes: the checkpoint has {stored}, the data {given}")
    if (stored := state["category_ids"]) != trainer.category_ids:
        problems.append(f"category ids: the checkpoint has {stored}, the data {trainer.category_ids}")
    now = trainer.recipe.model_dump(mode="json")
    for key in sorted((now.keys() | state["recipe"].keys()) - _FREE):
        if (stored := state["recipe"].get(key)) != now.get(key):
            problems.append(f"{key}: the checkpoint has {stored!r}, now {now.get(key)!r}")
    if problems:
        raise InputError(
            f"cannot resume from {path}: {'; '.join(problems)}. "
            "Give the same settings, or start anew with another --output"
        )
