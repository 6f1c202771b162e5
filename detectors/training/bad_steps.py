"""BadSteps: what becomes of training steps whose losses or gradients are not finite."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from detectors.detector import Detector
from detectors.losses.finite import NonFiniteError
from vfmdistill import Distiller

from .recipe import Recipe
from .rng_state import RngState
from .step_dump import Batch, StepDump

FOLDER = "bad_steps"
KEPT = 5  # dumps of a process: the first ones lie nearest to the cause


class TooManyBadSteps(NonFiniteError):  # noqa: N818
    """More steps in a row than the recipe allows had losses or gradients that are not finite."""


class BadSteps:
    """Counts the steps that are skipped, keeps what went into the first of them, and ends a run of nothing else.

    In every optimizer step each process calls one of `good`, `record` and `skip`; all of them skip a step together.

    Args:
        folder: the run's output; dumps go to `bad_steps/rank_R/step_NNNNNNNN` in it.
        limit: how many bad steps in a row are let pass.
        rank: number of this process.

    Attributes:
        count: bad steps so far.
        in_a_row: bad steps since the last good one.
    """

    def __init__(self, folder: Path, limit: int, *, rank: int = 0) -> None:
        self.folder = folder / FOLDER / f"rank_{rank}"
        self.limit = limit
        self.rank = rank
        self.count = 0
        self.in_a_row = 0

    def good(self) -> None:
        """Note a step that was done."""
        self.in_a_row = 0

    def record(
        self,
        step: int,
        epoch: int,
        batches: Sequence[Batch],
        losses: Sequence[Mapping[str, float]],
        reason: str,
        model: Detector,
        rng: RngState,
        recipe: Recipe,
        *,
        distiller: Distiller | None = None,
        counts: Tensor | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Path | None:
        """Note a step that went bad in this process and, for the first ones, write down what it was computed from.

        Args:
            step: number of the optimizer step in the run, from 1.
            epoch: number of the epoch, from 0.
            batches: its parts in this process.
            losses: of each part as far as they were computed, by name.
            reason: what is not finite.
            model: the detector, not wrapped, its weights and buffers as they were before the step.
            rng: as it was before the first forward.
            recipe: of the run.
            distiller: attached to the model, or None.
            counts: what the criterion was given as `counts`, or None.
            weights: the model's whole state where it is sharded; None takes the model's own.

        Returns:
            The dump, for `python -m detectors.training.replay`; None where this process has written `KEPT` before.

        Raises:
            TooManyBadSteps: `limit` is passed; the message holds the command that replays a step.
            CheckpointError: the dump cannot be written.
        """
        path = None
        if len(self._dumps()) < KEPT:
            dump = StepDump(
                step=step,
                epoch=epoch,
                rank=self.rank,
                processes=distributed.get_world_size() if _distributed() else 1,
                reason=reason,
                batches=list(batches),
                losses=[dict(values) for values in losses],
                counts=None if counts is None else counts.tolist(),
                rng=rng,
                model=dict(weights or model.state_dict()),
                injectors=None if distiller is None else dict(distiller.injectors.state_dict()),
                weight=None if distiller is None else distiller.weight,
                teaching=None if distiller is None else distiller.state_dict()["teaching"],
                detector={
                    "name": model.spec.name,
                    "num_classes": model.num_classes,
                    "class_names": model.class_names,
                    "options": model.spec.changes(),
                },
                recipe=recipe,
                device=next(model.parameters()).device.type,
                threads=torch.get_num_threads(),
            )
            path = dump.write(self.folder, f"step_{step:08d}")
        self.skip(step, reason)
        return path

    def skip(self, step: int, reason: str = "another process found it bad") -> None:
        """Note a step that is skipped because another process found it bad.

        Raises:
            TooManyBadSteps: as `record`.
        """
        self.count += 1
        self.in_a_row += 1
        if self.in_a_row > self.limit:
            raise TooManyBadSteps(
                f"{self.in_a_row} steps in a row were not finite, the last of them step {step}: {reason.rstrip('.')}. "
                f"{self.advice()}"
            )

    def advice(self) -> str:
        """Say how a bad step can be looked into."""
        dumps = self._dumps()
        if not dumps:
            return f"What went into them lies in {self.folder.parent}, one folder for each process that found it bad."
        return f"Run one again to see where: python -m detectors.training.replay {shlex.quote(str(dumps[-1]))}"

    def state_dict(self) -> dict[str, int]:
        """Return the counts, the same on every process."""
        return {"count": self.count, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict()` returned."""
        self.count, self.in_a_row = int(state["count"]), int(state["in_a_row"])

    def _dumps(self) -> list[Path]:
        return sorted(self.folder.glob("step_*"))


def is_scale_search(*, losses_finite: bool, norm_finite: bool, scale: float | None) -> bool:
    """Tell whether gradients overflowed only because a GradScaler is still looking for its scale.

    That is no bad step: the scaler skips it by itself and halves its scale. Gradients that are not finite at a scale of
    1 or less do not overflow for its sake.

    Args:
        losses_finite: whether all losses of the step are finite.
        norm_finite: whether the gradient's norm is.
        scale: the scaler's in this step; None without one.
    """
    return losses_finite and not norm_finite and scale is not None and scale > 1.0


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
