"""Loaders: batches of an epoch, in an order that follows from seed and epoch alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from detectors.data.coco import CocoDataset, Sample
from detectors.data.collate import collate
from detectors.data.transforms import eval_transform, train_transform
from vfmdistill.errors import InputError

from .recipe import Recipe

Batch: TypeAlias = tuple[Tensor, list[dict[str, Tensor]]]


class TrainLoader:
    """Shuffled training batches of this process; the last incomplete batch is left out.

    Args:
        data: training images; transform and epoch are set here.
        recipe: batch size (over all processes), seed, workers, stages of augmentation.
        accelerator: number and rank of processes.

    Raises:
        InputError: there are fewer images than a batch holds, or processes do not divide the batch.
    """

    def __init__(self, data: CocoDataset, recipe: Recipe, accelerator: Accelerator) -> None:
        world = accelerator.num_processes
        if recipe.batch_size % world:
            raise InputError(f"batch_size {recipe.batch_size} must be a multiple of the number of processes, {world}")
        if len(data) < recipe.batch_size:
            raise InputError(
                f"{len(data)} training images do not fill one batch of {recipe.batch_size}: lower --batch-size"
            )
        self.recipe, self.data, self._rank = recipe, data, accelerator.process_index
        self._sampler: DistributedSampler[Sample] = DistributedSampler(
            data, num_replicas=world, rank=self._rank, shuffle=True, seed=recipe.seed, drop_last=True
        )
        self._loader: DataLoader[Batch] = DataLoader(
            data,  # type: ignore[arg-type]  # the collated batch, not the item, is what comes out
            batch_size=recipe.batch_size // world,
            sampler=self._sampler,
            num_workers=recipe.workers,
            collate_fn=collate,
            drop_last=True,
            pin_memory=accelerator.device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Return the batches of an epoch, and make every other random draw of it follow from seed, epoch and rank."""
        recipe = self.recipe
        self._sampler.set_epoch(epoch)
        self.data.set_epoch(epoch)
        self.data.transform = train_transform(recipe.input_size, augment=recipe.is_augmented(epoch))
        entropy = np.random.SeedSequence([recipe.seed, epoch, self._rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
        return iter(self._loader)


def val_loader(data: CocoDataset, recipe: Recipe, accelerator: Accelerator) -> DataLoader[Batch]:
    """Return the validation batches of this process; sets the data's transform.

    Where the images do not divide evenly, some are read twice: the evaluator counts each image id once.
    """
    data.transform = eval_transform(recipe.input_size)
    world = accelerator.num_processes
    sampler: DistributedSampler[Sample] = DistributedSampler(
        data, num_replicas=world, rank=accelerator.process_index, shuffle=False
    )
    return DataLoader(
        data,  # type: ignore[arg-type]
        batch_size=max(1, recipe.batch_size // world),
        sampler=sampler,
        num_workers=recipe.workers,
        collate_fn=collate,
    )
