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

from .checkpoint import epoch_name, prune_checkpoints, read_checkpoint, write_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

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
    "init",
    "pretrained_backbone",
    "backbone_weights",
    "workers",
    "device",
    "keep_checkpoints",
    "save_every",
    "log_every",
    "max_bad_steps",
    "check_data",
    "dry_run",
    "tracker",
}


def save_epoch(trainer: Trainer, *, improved: bool) -> Path:
    """Write the checkpoint of the epoch that just ended, and the best one if it is the best.

    Every process calls it; the first writes.

    Returns:
        Where the epoch's checkpoint lies.
    """
    tensors, state = _tensors(trainer), _state(trainer)
    folder = trainer.checkpoints
    newest = folder / epoch_name(trainer.epoch - 1)
    if not trainer.engine.is_main:
        return newest
    # The best one first: were it the other way round, a run killed in between would go on without it.
    if improved:
        write_checkpoint(folder, best_name(trainer), {"ema": tensors["ema"]}, state)
    if improved and not trainer.in_last_stage:
        write_checkpoint(folder, _restart_name(trainer), tensors, state)
    write_checkpoint(folder, newest.name, tensors, state)
    prune_checkpoints(folder, trainer.recipe.keep_checkpoints)
    keep = {best_name(trainer), _restart_name(trainer)}
    for path in (*folder.glob("best_*"), *folder.glob("stage1_*")):
        if path.name not in keep:
            shutil.rmtree(path)
    return newest


def save_step(trainer: Trainer) -> Path:
    """Write a checkpoint inside an epoch; return where it lies. Every process calls it."""
    tensors, state = _tensors(trainer), _state(trainer)
    name = epoch_name(trainer.epoch, trainer.step)
    if trainer.engine.is_main:
        write_checkpoint(trainer.checkpoints, name, tensors, state)
        prune_checkpoints(trainer.checkpoints, trainer.recipe.keep_checkpoints)
    return trainer.checkpoints / name


def _tensors(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    engine = trainer.engine
    tensors = {
        "model": engine.full_state(trainer.model),
        "ema": engine.full_state(trainer.average.model),
        "optimizer": engine.optimizer_tensors(trainer.optimizer),
    }
    if trainer.distiller is not None:
        tensors["injectors"] = trainer.distiller.state_dict()["injectors"]
    return tensors


def _state(trainer: Trainer) -> dict[str, Any]:
    """Return all that is no tensor.

    Random generators are not in it: what is drawn follows from the recipe's seed, the step and the rank.
    """
    state: dict[str, Any] = {
        "model": trainer.model.spec.name,
        "options": trainer.model.spec.changes(),
        "class_names": trainer.model.class_names,
        "category_ids": trainer.category_ids,
        "recipe": trainer.recipe.model_dump(mode="json"),
        "data": trainer.data_digest,
        "processes": trainer.engine.world,
        "epoch": trainer.epoch,
        "step": trainer.step,
        "ema": trainer.average.state(),
        "losses": trainer.meter.state(),
        "layer_shares": trainer.layer_shares,
        "best": trainer.best,
        "last_stage": trainer.last_stage.state(),
        "bad_steps": trainer.bad_steps.state_dict(),
        "grad_scaler": trainer.engine.scaler_state(),
        "figures": trainer.figures,
        "versions": {"vfmdistill": vfmdistill.__version__, "torch": torch.__version__},
    }
    if trainer.distiller is not None:
        told = trainer.distiller.state_dict()
        state["modulator"], state["teaching"] = told["modulator"], told["teaching"]
        state["teacher"] = trainer.recipe.teacher
    return state


def best_name(trainer: Trainer) -> str:
    """Return the name of the checkpoint of the best epoch so far."""
    return f"best_{trainer.best['epoch']:04d}"


def _restart_name(trainer: Trainer) -> str:
    """Return the name of the checkpoint that the last stage begins with, the best before it."""
    return f"stage1_{trainer.last_stage.best_epoch:04d}"


def restart(trainer: Trainer) -> bool:
    """Go back to the weights, average and optimizer of the best epoch before the last stage, if one was evaluated."""
    path = trainer.checkpoints / _restart_name(trainer)
    if not path.is_dir():
        return False
    tensors, state = read_checkpoint(path)
    _load(trainer, tensors)
    trainer.average.updates = state["ema"]["updates"]
    return True


def export(trainer: Trainer) -> Path:
    """Write the best averaged weights, or the last where no epoch could be judged, as a folder to ship."""
    best = trainer.checkpoints / best_name(trainer)
    source = best if best.is_dir() else trainer.checkpoints / epoch_name(trainer.epoch - 1)
    folder = trainer.recipe.output / PRETRAINED
    save_pretrained(load_checkpoint(source), folder)
    return folder


def clear(trainer: Trainer) -> None:
    """Remove what only the last stage needed."""
    for path in trainer.checkpoints.glob("stage1_*"):
        shutil.rmtree(path)


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
    _load(trainer, tensors)
    if trainer.distiller is not None:
        told = {"modulator": state["modulator"], "teaching": state["teaching"]}
        trainer.distiller.load_state_dict({"injectors": tensors["injectors"], **told})
    trainer.engine.load_scaler_state(state["grad_scaler"])
    trainer.epoch, trainer.step = state["epoch"], state["step"]
    trainer.average.load_state(state["ema"])
    trainer.meter.load_state(state["losses"])
    trainer.layer_shares = state.get("layer_shares", {})
    trainer.last_stage.load_state(state["last_stage"])
    trainer.bad_steps.load_state_dict(state["bad_steps"])
    trainer.best, trainer.figures = state["best"], state["figures"]


def _load(trainer: Trainer, tensors: dict[str, dict[str, Tensor]]) -> None:
    engine = trainer.engine
    engine.load_full_state(trainer.model, tensors["model"])
    engine.load_full_state(trainer.average.model, tensors["ema"])
    engine.load_optimizer_tensors(trainer.optimizer, tensors["optimizer"])
    if trainer.distiller is not None:
        trainer.distiller.injectors.load_state_dict(tensors["injectors"])


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
    if (processes := state["processes"]) != trainer.engine.world:
        problems.append(f"processes: the checkpoint has {processes}, now {trainer.engine.world}")
    if state["data"] != trainer.data_digest:
        problems.append("data: the training images or boxes are others than the checkpoint's")
    if problems:
        raise InputError(
            f"cannot resume from {path}: {'; '.join(problems)}. "
            "Give the same settings, or start anew with another --output"
        )
