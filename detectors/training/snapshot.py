"""Snapshot: everything that a run needs to go on exactly as if it had never stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import vfmdistill
from detectors.detector import Detector
from detectors.factory import build
from detectors.pretrained import save_pretrained
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
PRETRAINED = "pretrained"

# Settings that do not decide what a resumed run computes, which finds its weights in the checkpoint.
_FREE = {
    "output",
    "resume",
    "data",
    "teacher_weights",
    "weights",
    "pretrained_backbone",
    "backbone_weights",
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
        "model": trainer.model.spec.name,
        "options": trainer.model.spec.changes(),
        "class_names": trainer.model.class_names,
        "category_ids": trainer.category_ids,
        "recipe": trainer.recipe.model_dump(mode="json"),
        "data": trainer.data_digest,
        "processes": trainer.accelerator.num_processes,
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
    # The best one first: were it the other way round, a run killed in between would go on without it.
    if improved:
        write_checkpoint(folder, best_name(trainer), {"ema": tensors["ema"]}, state)
    write_checkpoint(folder, f"epoch_{epoch:04d}", tensors, state)
    prune_checkpoints(folder, trainer.recipe.keep_checkpoints)
    for path in folder.glob("best_*"):
        if path.name != best_name(trainer):
            shutil.rmtree(path)


def best_name(trainer: Trainer) -> str:
    """Return the name of the checkpoint of the best epoch so far."""
    return f"best_{trainer.best['epoch']:04d}"


def export(trainer: Trainer) -> Path:
    """Write the best averaged weights, or the last where no epoch could be judged, as a folder to ship."""
    best = trainer.checkpoints / best_name(trainer)
    source = best if best.is_dir() else trainer.checkpoints / f"epoch_{trainer.epoch - 1:04d}"
    folder = trainer.recipe.output / PRETRAINED
    save_pretrained(load_checkpoint(source), folder)
    return folder


def load_checkpoint(path: str | Path) -> Detector:
    """Return the detector of a run's checkpoint with its averaged weights, in eval mode, on the CPU.

    Class names, category ids, and whatever was built other than its row in the table, come from the checkpoint.

    Args:
        path: a folder `checkpoints/best_NNNN` or `checkpoints/epoch_NNNN` of a run.

    Raises:
        InputError: there is no complete checkpoint.
    """
    tensors, state = read_checkpoint(Path(path))
    with torch.random.fork_rng(devices=[]):
        model = build(state["model"], class_names=state["class_names"], **state["options"])
    model.category_ids = state["category_ids"]
    model.load_state_dict(tensors["ema"])
    return model.eval()


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
    if (stored := state["processes"]) != (given := trainer.accelerator.num_processes):
        problems.append(f"processes: the checkpoint has {stored}, now {given}")
    if state["data"] != trainer.data_digest:
        problems.append("data: the training images or boxes are others than the checkpoint's")
    if problems:
        raise InputError(
            f"cannot resume from {path}: {'; '.join(problems)}. "
            "Give the same settings, or start anew with another --output"
        )
