"""Trainer: the loop — steps, epochs, evaluation, and the checkpoint after each epoch."""

from __future__ import annotations

import hashlib
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from detectors.data.coco import CocoDataset
from detectors.detector import Detector
from detectors.evaluation import CocoEvaluator
from detectors.losses.finite import NonFiniteError
from detectors.postprocess import postprocess
from vfmdistill import Distiller
from vfmdistill.errors import InputError

from . import snapshot
from .checkpoint import newest_checkpoint
from .ema import WeightAverage
from .loaders import TrainLoader, val_loader
from .meter import LossMeter
from .monitor import Monitor
from .optimizer import build_optimizer, parameter_groups, set_learning_rate
from .recipe import Recipe
from .schedule import flat_cosine

if TYPE_CHECKING:
    from rich.progress import Progress


class Trainer:
    """Train a detector by a recipe, with or without a teacher.

    `fit()` leaves in `recipe.output`: `checkpoints/epoch_NNNN` (the newest few), `checkpoints/best_NNNN`,
    `metrics.jsonl` and TensorBoard files; at its end also `pretrained`, a folder for `detectors.from_pretrained` with
    the best averaged weights and nothing of the teacher. `trainer.average.model` is the averaged model that is
    evaluated. As a context manager, or by `close()`, it detaches the distiller. Losses in the metrics are means over
    the batches of the first process; λ, share and the COCO figures are those of all processes.

    Args:
        recipe: the settings.
        accelerator: devices, processes and precision.
        model: the detector, on the accelerator's device, built for the recipe's `input_size`.
        criterion: (outputs, targets) → weighted losses by name.
        train_data: training images; the transform follows from the recipe, epoch by epoch.
        val_data: validation images.
        average: of `model`, made before a distiller was attached, so that it carries no hook.
        distiller: attached to `model`; None trains without a teacher.

    Raises:
        InputError: the output folder holds a run and `recipe.resume` is off, or holds one that does not fit; or the
            model was built for another input size.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        model: Detector,
        criterion: nn.Module,
        train_data: CocoDataset,
        val_data: CocoDataset,
        average: WeightAverage,
        distiller: Distiller | None = None,
    ) -> None:
        if model.spec.input_size != recipe.input_size:
            raise InputError(
                f"the model was built for images of {' × '.join(map(str, model.spec.input_size))}, the recipe is for "
                f"{' × '.join(map(str, recipe.input_size))}; build it with input_size=recipe.input_size."
            )
        self.recipe, self.accelerator, self.distiller = recipe, accelerator, distiller
        self.model, self.criterion = model, criterion
        self.val_data, self.category_ids = val_data, val_data.category_ids
        self.checkpoints = recipe.output / snapshot.FOLDER
        # With other images or boxes a resumed run would not go on, but change.
        self.data_digest = hashlib.sha256(train_data.annotation_file.read_bytes()).hexdigest()
        self.train_loader = TrainLoader(train_data, recipe, accelerator)
        self.val_loader = val_loader(val_data, recipe, accelerator)
        self.evaluator = CocoEvaluator(val_data.annotation_file, val_data.category_ids)
        self.average = average
        injectors = distiller.injectors if distiller is not None else None
        self.optimizer = build_optimizer(parameter_groups(model, injectors, recipe), recipe)
        self.network, self._stepper = accelerator.prepare(model, self.optimizer)
        self.epoch, self.step = 0, 0
        self.best: dict[str, float] = {"AP": -1.0, "epoch": -1}
        self.figures: dict[str, Any] = {}
        self._resume()
        self.monitor = Monitor(
            recipe.output, silent=not accelerator.is_main_process, first_epoch=self.epoch, first_step=self.step
        )

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

    def _resume(self) -> None:
        newest = newest_checkpoint(self.checkpoints)
        if newest is None and self.recipe.resume and not self.recipe.output.is_dir():
            raise InputError(f"nothing to resume: there is no folder {self.recipe.output}")
        if newest is not None:
            if not self.recipe.resume:
                raise InputError(
                    f"{self.recipe.output} holds a run already: continue it with --resume, or name another --output"
                )
            snapshot.restore(self, newest)

    def fit(self) -> dict[str, Any]:
        """Train the epochs that are left; return the figures of the last one."""
        if self.recipe.resume:
            found = "no checkpoint yet, starting" if self.epoch == 0 else "continuing"
            self.monitor.say(f"{found} with epoch {self.epoch} of {self.recipe.epochs}")
        for epoch in range(self.epoch, self.recipe.epochs):
            started = time.perf_counter()
            figures = self._train_epoch(epoch)
            speed = len(self.train_loader) * self.recipe.batch_size / (time.perf_counter() - started)
            self._share_statistics()
            if (epoch + 1) % self.recipe.evaluate_every == 0 or epoch + 1 == self.recipe.epochs:
                figures |= self.evaluate()
            self._finish_epoch(epoch, figures, speed)
        if self.accelerator.is_main_process:
            snapshot.export(self)
        self.accelerator.wait_for_everyone()
        return self.figures

    def _train_epoch(self, epoch: int) -> dict[str, Any]:
        recipe, steps, meter = self.recipe, len(self.train_loader), LossMeter()
        self.network.train()
        if self.distiller is not None and epoch >= recipe.last_stage:
            self.distiller.finish_adapting()
        total = steps * recipe.epochs
        batches = self.train_loader.epoch(epoch)
        for (images, targets), progress in self.monitor.track(batches, steps, f"epoch {epoch}"):
            factor = flat_cosine(
                self.step,
                total=total,
                warmup=recipe.warmup(total),
                flat=steps * recipe.flat_until,
                plain=steps * (recipe.epochs - recipe.last_stage),
                final=recipe.final_learning_rate,
            )
            set_learning_rate(self.optimizer, factor)
            image_ids = [int(target["image_id"]) for target in targets]
            try:
                losses = self._train_step(images, targets)
            except NonFiniteError as error:
                meter.read()  # raises if it began with the losses of a step before this one
                raise NonFiniteError(f"step {self.step + 1}, images with ids {image_ids}: {error}") from error
            self.step += 1
            meter.add(self.step, losses, image_ids)
            if self.step % recipe.log_every == 0:
                self._report(meter.read(), progress)
        figures: dict[str, Any] = {"epoch": epoch, **meter.means()}
        if self.distiller is not None:
            figures["semantic_loss"] = figures["loss_semantic"] / self.distiller.weight
            update = self.distiller.update()
            figures |= {"weight": update.previous, "share": update.share, "next_weight": update.weight}
            figures["modulation"] = str(update.reason)
        return figures | {"learning_rate": self.optimizer.param_groups[-1]["lr"]}

    def _train_step(self, images: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Do one optimizer step; return its losses by name, still on the device."""
        device = self.accelerator.device
        images = images.to(device, non_blocking=True)
        labelled = [{key: value.to(device, non_blocking=True) for key, value in target.items()} for target in targets]
        losses: dict[str, Tensor] = self.criterion(self.network(images, labelled), labelled)
        parameters = list(self.model.parameters())
        if self.distiller is not None:
            losses["loss_semantic"] = self.distiller.loss(images)
            parameters += self.distiller.parameters()
        self.accelerator.backward(torch.stack(list(losses.values())).sum())
        if self.distiller is not None:
            self.distiller.observe()
        self.accelerator.clip_grad_norm_(parameters, self.recipe.clip_norm)
        self._stepper.step()
        self._stepper.zero_grad()
        self.average.update(self.model)
        return losses

    def _share_statistics(self) -> None:
        """Give every process the running statistics of the first, where batch norm is not synchronised."""
        if self.accelerator.num_processes > 1:
            for module in (self.model, self.average.model):
                for buffer in module.buffers():
                    torch.distributed.broadcast(buffer, src=0)

    def _report(self, losses: dict[str, float], progress: Progress) -> None:
        values = losses | (self.distiller.metrics() if self.distiller is not None else {})
        self.monitor.scalars({f"train/{name}": value for name, value in values.items()}, self.step)
        task = progress.tasks[0]
        shown = [
            f"{name} {values[name]:.3g}" for name in ("loss", "semantic_loss", "weight", "share") if name in values
        ]
        shown.append(f"{(task.speed or 0.0) * self.recipe.batch_size:.1f} images/s")
        progress.update(task.id, figures="  ".join(shown))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the COCO figures of the averaged model on the validation images, those of all processes together."""
        self.evaluator.reset()
        for images, targets in self.val_loader:
            outputs = self.average.model(images.to(self.accelerator.device))
            sizes = [tuple(target["orig_size"].tolist()) for target in targets]
            self.evaluator.process([int(target["image_id"]) for target in targets], postprocess(outputs, sizes))
        self.evaluator.gather()
        return self.evaluator.evaluate()

    def _finish_epoch(self, epoch: int, figures: dict[str, Any], speed: float) -> None:
        improved = figures.get("AP", -1.0) > self.best["AP"]
        if improved:
            self.best = {"AP": figures["AP"], "epoch": epoch}
        self.epoch, self.figures = epoch + 1, figures
        self.monitor.epoch(figures, f"{speed:.1f} images/s")
        numbers = {f"epoch/{key}": value for key, value in figures.items() if isinstance(value, float)}
        self.monitor.scalars({**numbers, "epoch/images_per_second": speed}, self.step)
        if self.accelerator.is_main_process:
            snapshot.save(self, improved=improved)
        self.accelerator.wait_for_everyone()
