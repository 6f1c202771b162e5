"""Trackers: a run's figures on a service such as Weights & Biases, through accelerate."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfmdistill.errors import InputError

from .recipe import Recipe
from .records import replace_text

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "vfmdistill"
NAME = "tracker.json"


def check_tracker(name: str | None) -> None:
    """Raise where a tracker's package is missing: accelerate itself would go on without it and say nothing.

    Args:
        name: the package, for example "wandb"; None asks for none.

    Raises:
        InputError: it is not installed.
    """
    if name is None:
        return
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        raise InputError(
            f"tracker {name!r} was asked for, but its package is not installed: `pip install {name}`, or leave out "
            "--tracker; curves are in TensorBoard's files and in metrics.jsonl anyway"
        ) from None


def start_tracker(accelerator: Accelerator, recipe: Recipe) -> Callable[[dict[str, float], int], None] | None:
    """Start the tracker that the recipe asks for; return the function that gives it values of a step.

    A resumed run continues its curves: the run's id at the service is kept in tracker.json. All processes call this.

    Args:
        accelerator: made with `log_with=recipe.tracker`.
        recipe: it is sent along.

    Returns:
        (values by name, step) → None; None without a tracker.

    Raises:
        InputError: its package is missing, or the accelerator was made without it.
    """
    if recipe.tracker is None:
        return None
    check_tracker(recipe.tracker)
    if recipe.tracker not in {str(known) for known in accelerator.log_with}:
        raise InputError(
            f"the accelerator logs with {list(map(str, accelerator.log_with))}; expected {recipe.tracker!r}: make it "
            "with Accelerator(log_with=recipe.tracker)"
        )
    settings: dict[str, Any] = {}
    if accelerator.is_main_process:
        settings = {
            "id": _identity(recipe.output), "resume": "allow", "name": recipe.output.name, "dir": str(recipe.output)
        }  # fmt: skip
    accelerator.init_trackers(PROJECT, recipe.model_dump(mode="json"), {recipe.tracker: settings})

    def log(values: dict[str, float], step: int) -> None:
        accelerator.log(values, step=step)

    return log


def stop_tracker(accelerator: Accelerator) -> None:
    """End what `start_tracker` started, so that another run of this process does not go on with it."""
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers.clear()


def _identity(folder: Path) -> str:
    """Return the run's id at the service; a new run is given one."""
    path = folder / NAME
    if path.exists():
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    identity = uuid.uuid4().hex[:12]
    replace_text(path, json.dumps({"id": identity}) + "\n")
    return identity
