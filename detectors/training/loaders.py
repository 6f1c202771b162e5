"""Loaders: the batches of an epoch, which follow from seed and epoch alone, and those of the validation images."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from detectors.data.batches import Batch, Batches
from detectors.data.coco import CocoDataset
from detectors.data.collate import collate
from detectors.data.transforms import eval_transform
from vfmdistill.errors import InputError

from .recipe import Recipe


class TrainLoader:
    """The training batches of this process, in optimizer steps; see `Batches` for what is drawn from what.

    Args:
        data: training images.
        recipe: batch size (a number, over all processes), parts, seed, workers, augmentation by epoch.
        accelerator: number and rank of processes.

    Raises:
        InputError: there are fewer images than a batch holds, or processes and parts do not divide the batch.
    """

    def __init__(self, data: CocoDataset, recipe: Recipe, accelerator: Accelerator) -> None:
        self.data, self.recipe = data, recipe
        self._rank, self._world = accelerator.process_index, accelerator.num_processes
        self._pin_memory = accelerator.device.type == "cuda"
        self._steps = len(self.batches(0)) // recipe.accumulate

    def __len__(self) -> int:
        """Return the number of optimizer steps in an epoch."""
        return self._steps

    def batches(self, epoch: int) -> Batches:
        """Return the batches of an epoch, those of one step after another."""
        recipe = self.recipe
        return Batches(
            self.data,
            size=recipe.input_size,
            batch_size=_batch_size(recipe),
            augmentation=recipe.augmentation(epoch),
            seed=recipe.seed,
            epoch=epoch,
            rank=self._rank,
            world=self._world,
            parts=recipe.accumulate,
        )

    def epoch(self, epoch: int, first_step: int = 0) -> Iterator[list[Batch]]:
        """Yield the `recipe.accumulate` batches of each optimizer step, from step `first_step` of the epoch on.

        What comes does not depend on where one starts, and the random state of the caller is left alone.
        """
        parts = self.recipe.accumulate
        batches = self.batches(epoch)
        loader: DataLoader[Batch] = DataLoader(
            batches,
            batch_size=None,
            sampler=range(first_step * parts, len(batches)),
            num_workers=self.recipe.workers,
            collate_fn=_as_it_is,
            pin_memory=self._pin_memory,
            worker_init_fn=_outlive_signals,
            generator=torch.Generator(),  # for the seeds of the workers, which draw nothing from them
        )
        step: list[Batch] = []
        for images, targets in plainly(loader):
            step.append((images, targets))
            if len(step) == parts:
                yield step
                step = []


def val_loader(data: CocoDataset, recipe: Recipe, accelerator: Accelerator) -> DataLoader[Batch]:
    """Return the validation batches of this process; sets the data's transform.

    Every image comes once, in one of the processes; with few images some processes have one less than others, or none.
    """
    data.transform = eval_transform(recipe.input_size)
    world = accelerator.num_processes
    return DataLoader(
        data,  # type: ignore[arg-type]  # the collated batch, not the item, is what comes out
        batch_size=max(1, _batch_size(recipe) // world // recipe.accumulate),
        sampler=range(accelerator.process_index, len(data), world),
        num_workers=recipe.workers,
        collate_fn=collate,
        pin_memory=accelerator.device.type == "cuda",
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),
    )


def plainly(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Yield a loader's batches; what is wrong with a sample is said in the words of whoever found it.

    Raises:
        InputError: as in a worker, without the worker's stack around it.
    """
    try:
        yield from loader
    except InputError as error:
        *stack, last = str(error).rstrip().splitlines()
        raise InputError(last.partition(f"{InputError.__name__}: ")[2] if stack else last) from None


def _batch_size(recipe: Recipe) -> int:
    if isinstance(recipe.batch_size, str):
        raise InputError(f"batch_size is {recipe.batch_size!r}; loaders need a number, the images of a step.")
    return recipe.batch_size


def _as_it_is(batch: Any) -> Any:
    return batch


def _outlive_signals(worker: int) -> None:
    """Let a worker outlive Ctrl-C and the SIGTERM of a batch system, which reach all processes of a run at once.

    The training process may need its batches to finish a step before it saves. Its own SIGTERM ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS cannot tell who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
