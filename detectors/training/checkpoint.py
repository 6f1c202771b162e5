"""Checkpoints of a run: a folder of safetensors files and one JSON file, which appears whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detectors.flush import flush
from vfmdistill.errors import DistillError, InputError

STATE = "state.json"
FORMAT = 3
_NAME = re.compile(r"epoch_(\d+)(?:_step_(\d+))?")
_UNFINISHED = ".unfinished_"


class CheckpointError(DistillError, OSError):
    """A checkpoint cannot be written."""


def write_checkpoint(
    folder: Path, name: str, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write one checkpoint atomically: into a temporary folder that is renamed once everything is on disk.

    Args:
        folder: where the run keeps its checkpoints; made if need be.
        name: name of the checkpoint, for example "epoch_0007". An older one of that name is replaced.
        tensors: file name without ending → tensors; each becomes one safetensors file.
        state: everything else, as JSON.

    Raises:
        CheckpointError: it cannot be written, for example for want of space; older checkpoints are untouched then.
    """
    try:
        return _write(folder, name, tensors, state)
    except (OSError, SafetensorError) as error:
        newest = newest_checkpoint(folder)
        raise CheckpointError(
            f"cannot write the checkpoint {folder / name}: {error}. "
            + (f"{newest} is intact: make room and go on with --resume." if newest else "There is none yet: make room.")
        ) from error


def _write(folder: Path, name: str, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / name, folder / f"{_UNFINISHED}{name}"
    for leftover in folder.glob(f"{_UNFINISHED}*"):  # of a process that was killed while it wrote
        shutil.rmtree(leftover)
    temporary.mkdir()
    try:
        for part, values in tensors.items():
            save_file(
                {key: value.detach().contiguous() for key, value in values.items()}, temporary / f"{part}.safetensors"
            )
        contents = {"format": FORMAT, "parts": sorted(tensors), **state}
        (temporary / STATE).write_text(json.dumps(contents, indent=1), encoding="utf-8")
        for path in (*temporary.iterdir(), temporary):
            flush(path)
        if final.exists():  # moved aside first: a folder cannot be replaced by another in one go
            final.rename(folder / f"{_UNFINISHED}{name}_before")
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush(folder)
    shutil.rmtree(folder / f"{_UNFINISHED}{name}_before", ignore_errors=True)
    return final


def read_checkpoint(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Return the tensors, on the CPU, and the state of a checkpoint that `write_checkpoint` made.

    Raises:
        InputError: the folder or one of its files is missing or damaged.
    """
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise InputError(f"{path} has the format {state['format']}, this version reads {FORMAT}")
        return {part: load_file(path / f"{part}.safetensors") for part in state["parts"]}, state
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{path} is not a complete checkpoint: {type(error).__name__}: {error}. Restore it, or remove the folder: "
            "the one before it is used then."
        ) from None


def epoch_name(epoch: int, step: int | None = None) -> str:
    """Return the name of the checkpoint after an epoch, or inside it, after so many steps of the run."""
    return f"epoch_{epoch:04d}" if step is None else f"epoch_{epoch:04d}_step_{step:08d}"


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the latest checkpoint, or None if there is none; the best ones are not looked at."""
    found = _by_epoch(folder)
    return found[-1] if found else None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for path in _by_epoch(folder)[:-keep]:
        shutil.rmtree(path)


def _by_epoch(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    # The one after an epoch follows those inside it.
    return [path for *_, path in sorted((int(name[1]), float(name[2] or "inf"), path) for name, path in found)]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's tensors under "parameter name/slot"; the groups must carry "names"."""
    return {
        f"{name}/{slot}": value
        for name, parameter in _named(optimizer)
        for slot, value in optimizer.state[parameter].items()
        if isinstance(value, Tensor)
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned.

    Raises:
        InputError: the tensors belong to other parameters.
    """
    parameters = dict(_named(optimizer))
    # A parameter that has had no gradient yet has no state either.
    if odd := sorted({key.rpartition("/")[0] for key in tensors} - parameters.keys()):
        raise InputError(f"the optimizer's state belongs to other parameters: {len(odd)} unknown, first: {odd[:5]}")
    for key, value in tensors.items():
        name, _, slot = key.rpartition("/")
        # AdamW counts its steps on the CPU whatever the device of the weights
        place = value.device if slot == "step" else parameters[name].device
        optimizer.state[parameters[name]][slot] = value.to(place)


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]
