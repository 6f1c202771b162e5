"""StepDump: one training step in a folder, with everything that is needed to run it again without the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

import vfmdistill
from vfmdistill.errors import InputError

from .checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from .recipe import Recipe, sentences
from .rng_state import RngState

KIND = "training step"

Batch = tuple[Tensor, Sequence[Mapping[str, Any]]]
"""Images (N, 3, H, W) and N targets."""


@dataclass(frozen=True)
class StepDump:
    """A training step: what went in, what came out, and the weights it was computed with.

    Attributes:
        step: number of the optimizer step in the run, from 1.
        epoch: number of the epoch, from 0.
        rank: the process that computed it.
        processes: how many there were.
        reason: why it was kept.
        batches: the parts, on the CPU; of the targets all tensors.
        losses: of each part as far as they were computed, by name.
        counts: what the criterion was given as `counts`, or None.
        rng: before the first forward.
        model: the detector's weights and buffers before the first forward.
        injectors: the injectors' weights; None without a teacher.
        weight: λ; None without a teacher.
        teaching: what the distiller knew of its teachers before the step; None without one.
        detector: how the detector is built: `name`, `num_classes`, `class_names` and `options`.
        recipe: of the run.
        device: kind of device that it was computed on, for example "cuda".
        threads: how many the CPU computed with, on which the order of its sums depends.
    """

    step: int
    epoch: int
    rank: int
    processes: int
    reason: str
    batches: list[Batch]
    losses: list[dict[str, float]]
    counts: list[float] | None
    rng: RngState
    model: dict[str, Tensor]
    injectors: dict[str, Tensor] | None
    weight: float | None
    teaching: dict[str, Any] | None
    detector: dict[str, Any]
    recipe: Recipe
    device: str
    threads: int

    def write(self, folder: Path, name: str) -> Path:
        """Write the step as `folder/name`, which appears whole or not at all: safetensors files and one JSON file.

        Raises:
            CheckpointError: it cannot be written, for example for want of space.
        """
        tensors = {"batches": _flat(self.batches), "rng": self.rng.tensors(), "model": self.model}
        if self.injectors is not None:
            tensors["injectors"] = self.injectors
        state = {
            "kind": KIND,
            **{name: getattr(self, name) for name in _PLAIN},
            "sizes": [len(images) for images, _ in self.batches],
            "losses": [{name: _text(value) for name, value in losses.items()} for losses in self.losses],
            "counts": None if self.counts is None else [_text(value) for value in self.counts],
            "recipe": self.recipe.model_dump(mode="json"),
            "versions": {"vfmdistill": vfmdistill.__version__, "torch": torch.__version__},
        }
        try:
            return write_checkpoint(folder, name, tensors, state)
        except CheckpointError as error:
            raise CheckpointError(f"cannot write step {self.step} to {folder / name}: {error.__cause__}.") from error

    @classmethod
    def read(cls, path: Path) -> StepDump:
        """Return the step that `write` put into a folder. Nothing that the folder holds is run.

        Raises:
            InputError: the folder or one of its files is missing, damaged, or no step.
        """
        tensors, state = read_checkpoint(path)
        if state.get("kind") != KIND:
            raise InputError(f"{path} is a checkpoint, no step; expected a folder of bad_steps/ in a run's output.")
        try:
            recipe = Recipe.model_validate(state["recipe"])
            return cls(
                **{name: state[name] for name in _PLAIN},
                batches=_batches(tensors["batches"], state["sizes"]),
                losses=[{name: float(value) for name, value in losses.items()} for losses in state["losses"]],
                counts=None if state["counts"] is None else [float(value) for value in state["counts"]],
                rng=RngState.of(tensors["rng"]),
                model=tensors["model"],
                injectors=tensors.get("injectors"),
                recipe=recipe,
            )
        except ValidationError as error:
            raise InputError(f"the recipe in {path} is of another version: {sentences(error)}.") from None
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path} is damaged: {type(error).__name__}: {error}.") from None


_PLAIN = ("step", "epoch", "rank", "processes", "reason", "weight", "teaching", "detector", "device", "threads")


def _text(value: float) -> float | str:
    """Return a number as JSON can have it, which knows no NaN."""
    return value if abs(value) < float("inf") else str(value)


def _flat(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Return the tensors of all batches under "batch/images" and "batch/image/key"."""
    tensors = {}
    for number, (images, targets) in enumerate(batches):
        tensors[f"{number}/images"] = images
        for index, target in enumerate(targets):
            for key, value in target.items():
                if isinstance(value, Tensor):
                    # A copy: targets may be views of one tensor, which a file cannot hold twice.
                    tensors[f"{number}/{index}/{key}"] = value.as_subclass(Tensor).detach().clone()
    return tensors


def _batches(tensors: Mapping[str, Tensor], sizes: Sequence[int]) -> list[Batch]:
    targets: list[list[dict[str, Tensor]]] = [[{} for _ in range(size)] for size in sizes]
    for name, value in tensors.items():
        number, *rest = name.split("/", 2)
        if len(rest) == 2:
            targets[int(number)][int(rest[0])][rest[1]] = value
    return [(tensors[f"{number}/images"], targets[number]) for number in range(len(sizes))]
