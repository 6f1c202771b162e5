"""TrainStep: one optimizer step, from the images to the moved weights, or to the reason why they stay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from detectors.detector import Detector
from detectors.losses.criterion import Criterion, Matching, mean_over_processes
from detectors.losses.finite import NonFiniteError
from vfmdistill import Distiller
from vfmdistill.layer_shares import layer_shares

from .bad_steps import is_scale_search
from .buffer_guard import BufferGuard
from .engine import Engine
from .rng_state import RngState

Batch: TypeAlias = tuple[Tensor, list[dict[str, Tensor]]]


@dataclass
class Outcome:
    """What came of a step.

    Attributes:
        losses: total of the step's losses by name, on the device: the mean over its parts.
        parts: the losses of each part as far as they were computed.
        reason: what was not finite in this process, "" where only another one says so; None for a step that was done.
        searching: gradients overflowed because the GradScaler is looking for its scale: skipped, but nothing is wrong.
        counts: what the criterion divided by.
        rng: the state of the generators before the step.
        layer_shares: the shares of the gradient in percent by part of the detector and "injectors", where they were
            asked for and the teachers looked.
    """

    rng: RngState
    losses: dict[str, Tensor] = field(default_factory=dict)
    parts: list[dict[str, Tensor]] = field(default_factory=list)
    reason: str | None = None
    searching: bool = False
    counts: Tensor | None = None
    layer_shares: dict[str, float] = field(default_factory=dict)

    def loss_values(self) -> list[dict[str, float]]:
        """Return the losses of each part as numbers. Reads the device."""
        return [{name: float(value) for name, value in part.items()} for part in self.parts]


class TrainStep:
    """Trains a detector on one batch, in one part or accumulated from several, and never on anything not finite.

    Where a prediction, a loss or the gradient is not finite in any process, no process moves its weights, and running
    statistics are put back to what they were.

    Accumulated from parts, a step gives the gradients, the share and λ of the whole batch, but for two things that see
    a part at a time: batch norms, and the denoising queries, whose number of groups and noise are drawn for it. The
    losses of matched boxes are divided by numbers that are only known once the last part has been matched: every part
    of a detector with union matching or edge distributions runs forward twice, the first time without gradients.

    Args:
        engine: devices and processes.
        model: the detector.
        network: what the engine made of it.
        criterion: its losses.
        distiller: attached to it, or None.
        clip_norm: largest L2 norm of the gradient.
        seed: of what is drawn in a forward, the denoising queries' noise.
    """

    def __init__(
        self,
        engine: Engine,
        model: Detector,
        network: nn.Module,
        criterion: Criterion,
        distiller: Distiller | None,
        *,
        clip_norm: float,
        seed: int,
    ) -> None:
        self.engine, self.model, self.network = engine, model, network
        self.criterion, self.distiller = criterion, distiller
        self._clip_norm, self._seed = clip_norm, seed
        self._guard = BufferGuard(model)
        # Plain box losses are divided by the number of objects, which the targets tell.
        self._matches_count = criterion.union_matching or model.spec.decoder == "dfine"
        self._parameters = [*model.parameters(), *(distiller.parameters() if distiller is not None else ())]

    def __call__(self, batches: Sequence[Batch], step: int, *, measure: bool = False) -> Outcome:
        """Do optimizer step number `step`, from 0, on this process's part or parts of a batch.

        Args:
            batches: the parts.
            step: its number.
            measure: whether to read `Outcome.layer_shares` from the gradients; the same in every process.
        """
        parts = [self._on_device(batch) for batch in batches]
        self._guard.save()
        self._draw_for(step)
        outcome = Outcome(RngState.take(self.engine.device))
        try:
            if len(parts) > 1:
                outcome.counts = mean_over_processes(self._count(parts))
                self._guard.restore()
                outcome.rng.restore(self.engine.device)
            self._accumulate(parts, outcome)
            norm = self.engine.clip(self._parameters, self._clip_norm)
            self._judge(outcome, norm)
        except _NotFiniteError as bad:
            outcome.reason = str(bad)
        if outcome.reason is None:
            if measure and self.distiller is not None and self.distiller.looks and not outcome.searching:
                outcome.layer_shares = layer_shares(self.model, extra={"injectors": self.distiller.parameters()})
            self.engine.step()
        else:
            self._guard.restore()
            if self.distiller is not None:
                self.distiller.discard()
        self.engine.zero_grad()
        return outcome

    def _on_device(self, batch: Batch) -> Batch:
        images, targets = batch
        device = self.engine.device
        labelled = [{key: value.to(device, non_blocking=True) for key, value in target.items()} for target in targets]
        return images.to(device, non_blocking=True), labelled

    def _draw_for(self, step: int) -> None:
        """Seed the global generators, so that a resumed run draws what it would have drawn."""
        entropy = np.random.SeedSequence([self._seed, step, self.engine.rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)

    def _accumulate(self, parts: Sequence[Batch], outcome: Outcome) -> None:
        """Run forward and backward on every part; the gradients are those of the mean over parts."""
        for number, (images, targets) in enumerate(parts):
            with ExitStack() as stack:
                if number + 1 < len(parts):
                    stack.enter_context(self.engine.no_sync(self.network))
                with self.engine.autocast():
                    outputs = self.network(images, targets)
                matching = self._agreed_matching(outputs, targets)
                if outcome.counts is None:
                    outcome.counts = mean_over_processes(matching.counts)
                losses: dict[str, Tensor] = self.criterion(outputs, targets, matching, outcome.counts)
                if self.distiller is not None:
                    semantic = self.distiller.loss(images)
                    if self.distiller.looks:
                        losses["loss_semantic"] = semantic
                outcome.parts.append({name: loss.detach() for name, loss in losses.items()})
                self.engine.backward(torch.stack(list(losses.values())).sum() / len(parts))
        if self.distiller is not None:
            self.distiller.observe()
        names = dict.fromkeys(name for part in outcome.parts for name in part)
        for name in names:  # a part without boxes has no denoising losses
            values = [part[name] for part in outcome.parts if name in part]
            outcome.losses[name] = torch.stack(values).sum() / len(parts)

    def _agreed_matching(self, outputs: Mapping[str, object], targets: Sequence[Mapping[str, Tensor]]) -> Matching:
        """Match predictions and objects; where that fails in any process, all of them give the step up here."""
        matching, failure = None, ""
        try:
            matching = self.criterion.match(outputs, targets)
        except NonFiniteError as error:
            failure = str(error)
        (failed,) = self.engine.agree(bool(failure))
        if failed or matching is None:
            raise _NotFiniteError(failure)
        return matching

    @torch.no_grad()
    def _count(self, parts: Sequence[Batch]) -> Tensor:
        """Return what the losses of all parts together are divided by, as a mean over the parts."""
        if not self._matches_count:
            objects = sum(len(target["labels"]) for _, targets in parts for target in targets)
            return torch.full((4,), objects / len(parts), device=self.engine.device)
        counts = []
        for images, targets in parts:
            with self.engine.autocast():
                outputs = self.model(images, targets)
            counts.append(self._agreed_matching(outputs, targets).counts)
        return torch.stack(counts).mean(0)

    def _judge(self, outcome: Outcome, norm: Tensor) -> None:
        """Raise unless losses and gradient are finite in every process.

        This waits for the device, as matching does: whether weights may move has to be known before they do.
        """
        finite = torch.stack([torch.stack(list(outcome.losses.values())).sum(), norm.to(self.engine.device)]).isfinite()
        losses_finite, norm_finite = finite.tolist()
        # A loss that is not finite in one process makes the gradient so in all.
        bad_losses, bad_norm = self.engine.agree(not losses_finite, not norm_finite)
        outcome.searching = is_scale_search(
            losses_finite=not bad_losses, norm_finite=not bad_norm, scale=self.engine.scale
        )
        if (bad_losses or bad_norm) and not outcome.searching:
            raise _NotFiniteError("" if losses_finite and norm_finite else _reason(outcome, norm_finite))


class _NotFiniteError(Exception):
    """The step is not to be done."""


def _reason(outcome: Outcome, norm_finite: bool) -> str:
    def named() -> Iterator[str]:
        for number, part in enumerate(outcome.loss_values()):
            for name, value in part.items():
                if not math.isfinite(value):
                    yield f"{name} = {value}" + (f" (part {number})" if len(outcome.parts) > 1 else "")

    losses = list(named())
    if losses:
        return f"{len(losses)} losses are not finite: {', '.join(losses)}."
    return "the losses are finite, their sum or the gradient is not." if norm_finite else "the gradient is not finite."
