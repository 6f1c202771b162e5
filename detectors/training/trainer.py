"""Trainer: the loop — steps, epochs, evaluation, and the checkpoints that nothing is lost by."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from detectors.data.coco import CocoDataset
from detectors.detector import Detector
from detectors.losses.criterion import Criterion
from vfmdistill import Distiller, GradientModulator
from vfmdistill.errors import DistillError, InputError

from . import environment, run_file, snapshot
from .bad_steps import BadSteps, TooManyBadSteps
from .checkpoint import newest_checkpoint
from .dry_run import dry_run, heaviest_images
from .ema import WeightAverage
from .engine import Engine
from .interrupt import Interrupted, StopSignals
from .introduction import introduce, known_facts
from .last_stage import LastStage
from .loaders import TrainLoader
from .meter import LossMeter
from .monitor import Monitor
from .optimizer import build_optimizer, describe_groups, parameter_groups, set_learning_rate
from .recipe import Recipe
from .report_page import write_report
from .run_file import begin_run, end_run
from .schedule import learning_rate_factor
from .step import Outcome, TrainStep
from .tracker import start_tracker, stop_tracker
from .validation import Validation


class Trainer:
    """Train a detector by a recipe, with or without a teacher.

    `fit()` leaves in `recipe.output`: `checkpoints/epoch_NNNN` (the newest few), `checkpoints/best_NNNN`,
    `metrics.jsonl`, `report.html` and TensorBoard files; at its end also `pretrained`, a folder for
    `detectors.from_pretrained` with the best averaged weights and nothing of the teacher. `trainer.average.model` is
    the averaged model that is evaluated, `trainer.train_step` does one step. As a context manager, or by `close()`, it
    detaches the distiller. Losses in the metrics are means over the batches of the first process; λ, share and the COCO
    figures are those of all processes. "share/PART" is the share of a part of the detector, or of the injectors, in the
    last step of the epoch that the teachers looked at.

    Args:
        recipe: the settings; `batch_size` must be a number.
        engine: devices, processes and precision.
        model: the detector, placed by the engine, built for the recipe's `input_size`.
        criterion: its losses.
        train_data: training images; what happens to them follows from the recipe, epoch by epoch.
        val_data: validation images.
        average: of `model`, made before a distiller was attached, so that it carries no hook.
        distiller: attached to `model`; None trains without a teacher.
        facts: what else the report shall say of the run; JSON-able.

    Raises:
        InputError: the output folder holds a run and `recipe.resume` is off, or holds one that does not fit; or the
            model was built for another input size.
    """

    def __init__(
        self,
        recipe: Recipe,
        engine: Engine,
        model: Detector,
        criterion: Criterion,
        train_data: CocoDataset,
        val_data: CocoDataset,
        average: WeightAverage,
        distiller: Distiller | None = None,
        *,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        if model.spec.input_size != recipe.input_size:
            raise InputError(
                f"the model was built for images of {' × '.join(map(str, model.spec.input_size))}, the recipe is for "
                f"{' × '.join(map(str, recipe.input_size))}; build it with input_size=recipe.input_size."
            )
        if recipe.batch_size == "auto":
            raise InputError("batch_size is 'auto', which `assemble` turns into a number; give the recipe a number.")
        self.recipe, self.engine, self.distiller = recipe, engine, distiller
        self.model, self.criterion, self.average = model, criterion, average
        self.val_data, self.category_ids = val_data, val_data.category_ids
        self.checkpoints = recipe.output / snapshot.FOLDER
        # With other images or boxes a resumed run would not go on, but change.
        self.data_digest = train_data.digest
        self._box_counts = train_data.box_counts
        self.train_loader = TrainLoader(train_data, recipe, engine.accelerator)
        self.validation = Validation(val_data, recipe, engine)
        engine.shard(model)
        engine.shard(average.model)
        injectors = distiller.injectors if distiller is not None else None
        optimizer = build_optimizer(parameter_groups(model, injectors, recipe), recipe)
        self.groups = describe_groups(optimizer)  # as they are before they are split over processes
        self._network, self.optimizer = engine.prepare(model, optimizer)
        self.train_step = TrainStep(
            engine, model, self._network, criterion, distiller, clip_norm=recipe.clip_norm, seed=recipe.seed
        )
        self.epoch, self.step = 0, 0
        self.in_last_stage = False
        self.best: dict[str, float] = {"AP": -1.0, "epoch": -1}
        self.figures: dict[str, Any] = {}
        self.layer_shares: dict[str, float] = {}  # of the epoch's last step, as soon as it is done
        self.meter, self.last_stage = LossMeter(), LastStage()
        self.bad_steps = BadSteps(recipe.output, recipe.max_bad_steps, rank=engine.rank)
        self._stop = StopSignals()
        self._resume()
        self.monitor = Monitor(
            recipe.output,
            silent=not engine.is_main,
            first_epoch=self.epoch,
            first_step=self.step,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            tracker=start_tracker(engine.accelerator, recipe),
        )
        if engine.is_main:
            begin_run(recipe.output, {**known_facts(self), **(facts or {})}, epoch=self.epoch, step=self.step)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Detach the distiller and close the files."""
        if self.distiller is not None:
            self.distiller.detach()
        self.monitor.close()
        stop_tracker(self.engine.accelerator)

    def _resume(self) -> None:
        newest = newest_checkpoint(self.checkpoints)
        if newest is None and self.recipe.resume and not self.recipe.output.is_dir():
            raise InputError(f"nothing to resume: there is no folder {self.recipe.output}")
        if newest is None and self.recipe.resume and not _may_begin(self.recipe.output):
            raise InputError(f"nothing to resume: {self.recipe.output} holds other things than a run")
        if newest is not None:
            if not self.recipe.resume:
                raise InputError(
                    f"{self.recipe.output} holds a run already: continue it with --resume, or name another --output"
                )
            snapshot.restore(self, newest)

    def fit(self) -> dict[str, Any]:
        """Train the epochs that are left; return the figures of the last one.

        Raises:
            Interrupted: SIGTERM or SIGINT came; the step was finished and everything saved.
            TooManyBadSteps: nothing but steps without a finite gradient, `recipe.max_bad_steps` in a row.
            CheckpointError: a checkpoint cannot be written; the one before it is intact.
        """
        introduce(self)
        if self.recipe.dry_run and self.step == 0:
            self._try_heaviest()
        with self._stop:  # until the report is written, too
            try:
                for epoch in range(self.epoch, self.recipe.epochs):
                    self._train_epoch(epoch)
                    evaluated = (epoch + 1) % self.recipe.evaluate_every == 0 or epoch + 1 == self.recipe.epochs
                    saved = self._finish_epoch(epoch, self.evaluate() if evaluated else {})
                    if epoch + 1 < self.recipe.epochs:
                        self._stop_if_asked(saved)
            except (Interrupted, TooManyBadSteps) as ended:
                self._report(finished=False)
                if isinstance(ended, Interrupted):  # a launcher ends the first process as soon as another has ended
                    self.engine.accelerator.wait_for_everyone()
                raise
        if self.engine.is_main:
            snapshot.export(self)
            snapshot.clear(self)
        self._report(finished=True)
        self.engine.accelerator.wait_for_everyone()
        return self.figures

    def _try_heaviest(self) -> None:
        """Find out now, not in the middle of the night, whether the largest images with the most boxes fit."""
        images = int(self.recipe.batch_size) // self.engine.world // self.recipe.accumulate
        heaviest = heaviest_images(self.recipe, self._box_counts)
        self.monitor.say(str(dry_run(self.train_step, self.optimizer, images=images, heaviest=heaviest)))

    def _report(self, *, finished: bool) -> None:
        if self.engine.is_main:
            end_run(self.recipe.output, finished=finished, best=self.best)
            self.monitor.say(f"report: {write_report(self.recipe.output)}")

    def _train_epoch(self, epoch: int) -> None:
        steps = len(self.train_loader)
        first = self.step - epoch * steps
        self.in_last_stage = epoch >= self.recipe.stages.plain_from
        if first == 0:
            self.meter, self.layer_shares = LossMeter(), {}
            if epoch == self.recipe.stages.plain_from:
                self.last_stage.begin(self)
        self._network.train()
        batches = self.train_loader.epoch(epoch, first)
        for parts, _ in self.monitor.track(batches, steps, f"epoch {epoch}", epoch=epoch, first=first):
            set_learning_rate(self.optimizer, learning_rate_factor(self.recipe, self.step, steps))
            left = steps * (epoch + 1) - self.step
            outcome = self.train_step(parts, self.step, measure=left <= self.recipe.teacher_every)
            self.step += 1
            self._note(outcome, parts, epoch)
            if self.step % self.recipe.log_every == 0:
                values = self.meter.read() | (self.distiller.metrics() if self.distiller is not None else {})
                self.monitor.step(values, self.step)
            self._stop_if_asked()
            every = self.recipe.save_every
            if every is not None and (self.step - epoch * steps) % every == 0:
                snapshot.save_step(self)
                self.engine.accelerator.wait_for_everyone()

    def _note(self, outcome: Outcome, parts: list[Any], epoch: int) -> None:
        """Let the average follow a step that was done; keep what a bad one was computed from."""
        if outcome.searching:
            return
        if outcome.reason is None:
            self.average.update(self.model)
            self.bad_steps.good()
            image_ids = [int(target["image_id"]) for _, targets in parts for target in targets]
            self.meter.add(self.step, outcome.losses, image_ids)
            self.layer_shares = outcome.layer_shares or self.layer_shares
            return
        weights = self.engine.full_state(self.model) if self.recipe.shard else None  # all processes together
        if not outcome.reason:
            self.monitor.say(f"step {self.step} is left out: it was not finite in another process")
            self.bad_steps.skip(self.step)
            return
        dump = self.bad_steps.record(
            self.step, epoch, parts, outcome.loss_values(), outcome.reason, self.model, outcome.rng, self.recipe,
            distiller=self.distiller, counts=outcome.counts, weights=weights,
        )  # fmt: skip
        kept = f" Replay it: python -m detectors.training.replay {shlex.quote(str(dump))}" if dump else ""
        self.monitor.say(f"step {self.step} is left out: {outcome.reason}{kept}")

    def _stop_if_asked(self, saved: Path | None = None) -> None:
        """Save, unless that was just done, and end the run where a signal asked any process to."""
        (asked,) = self.engine.agree(self._stop.received is not None)
        if not asked:
            return
        saved = saved or snapshot.save_step(self)
        self.engine.accelerator.wait_for_everyone()
        number = self._stop.received or signal.SIGTERM  # another process got it
        again = environment.command() + ("" if self.recipe.resume else " --resume")
        if self.engine.world > 1:
            again = f"{self.engine.world} processes, started by the same launcher, of {again}"
        if not self.engine.is_main:
            raise Interrupted("", number)  # the first process says it
        raise Interrupted(
            f"stopped by {signal.Signals(number).name} after step {self.step}; everything is in {saved}. "
            f"Go on with: {again}",
            number,
        )

    def evaluate(self) -> dict[str, Any]:
        """Return the COCO figures of the averaged model on the validation images, those of all processes together.

        Besides the twelve figures, "AP_per_class" holds the AP of every class by name.
        """
        self.engine.share_statistics(self.model, self.average.model)
        return self.validation(self.average.model, self._stop_if_asked)

    def _finish_epoch(self, epoch: int, evaluation: dict[str, Any]) -> Path:
        """Bring the epoch's figures together and write them and its checkpoint, whose path is returned."""
        figures: dict[str, Any] = {"epoch": epoch, **self.meter.means(), "bad_steps": self.bad_steps.count}
        if self.distiller is not None:
            semantic = self.meter.mean_of_its_own_steps("loss_semantic")
            if semantic is not None:
                figures["semantic_loss"] = semantic / self.distiller.weight
            update = self.distiller.update()
            figures |= {"weight": update.previous, "share": update.share, "next_weight": update.weight}
            figures["modulation"] = str(update.reason)
            figures |= {f"share/{part}": share for part, share in self.layer_shares.items()}
            modulator = self.distiller.modulator
            if isinstance(modulator, GradientModulator) and modulator.rho is not None:
                figures |= {"rho": modulator.rho, "delta": modulator.delta}
                if update.reason == "calibrated":
                    self.monitor.say(str(modulator.calibration))
        figures["learning_rate"] = self.optimizer.param_groups[-1]["lr"]
        self.epoch, self.figures = epoch + 1, figures | evaluation
        improved = evaluation.get("AP", -1.0) > self.best["AP"]
        if improved:
            self.best = {"AP": evaluation["AP"], "epoch": epoch}
        self.monitor.epoch(self.figures, step=self.step)
        if evaluation:
            self.last_stage.judge(self, epoch, evaluation["AP"])
        saved = snapshot.save_epoch(self, improved=improved)
        if evaluation and self.engine.is_main:
            try:
                write_report(self.recipe.output)
            except (DistillError, OSError) as error:  # no reason to end a run
                self.monitor.say(f"no report yet: {error}")
        self.engine.accelerator.wait_for_everyone()
        return saved


def _may_begin(folder: Path) -> bool:
    """Whether a run can begin in a folder: it holds the beginning of one, or nothing."""
    return (folder / run_file.NAME).exists() or not any(folder.iterdir())
