"""Batches: the training batches of one epoch, each a function of seed, epoch and its number alone."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from detectors.data.augmentation import Augmentation
from detectors.data.coco import Sample, sample_seed
from detectors.data.collate import collate
from detectors.data.mixup import mixup
from detectors.data.mosaic import TILES, mosaic
from detectors.data.transforms import train_transform
from detectors.input_size import STRIDE, check_input_size
from vfmdistill.errors import InputError

Batch: TypeAlias = tuple[Tensor, list[dict[str, Any]]]

# Spawn keys of what is drawn for the whole epoch and for a step; the draws of single images have none.
_ORDER, _STEP = 1, 2


class Samples(Protocol):
    """What batches are made of, a `CocoDataset` for example."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Sample:
        """Return one sample as it is on disk."""
        ...


class Batches(Dataset[Batch]):
    """The training batches of one epoch, as one process takes them.

    The images are shuffled, and every optimizer step takes the next `batch_size` of them; the last ones that do not
    fill a batch are left out. `batches[k]` is part k % parts of step k // parts: (images (n, 3, h, w) float32 in
    [0, 1], targets), where n = batch_size / (world × parts).

    Nothing is drawn but from (seed, epoch, index of the image) and (seed, epoch, step). So any batch can be made at
    any time, by any worker, and all parts of all processes together are the same images with the same pixels, however
    many parts and processes there are. The random state of the caller is left alone.

    Args:
        data: the images.
        size: (height, width) of the images, before another size is drawn.
        batch_size: images per optimizer step, those of all processes and parts together.
        augmentation: of this epoch.
        seed: of the run, not negative.
        epoch: number of the epoch, from 0.
        rank: number of this process.
        world: number of processes.
        parts: number of batches that one process takes for one optimizer step.

    Raises:
        InputError: processes and parts do not divide the batch, there are fewer images than a batch holds, or the
            size is not divisible by 32.
    """

    def __init__(
        self,
        data: Samples,
        *,
        size: tuple[int, int],
        batch_size: int,
        augmentation: Augmentation,
        seed: int,
        epoch: int,
        rank: int = 0,
        world: int = 1,
        parts: int = 1,
    ) -> None:
        if batch_size % (world * parts):
            raise InputError(
                f"a batch of {batch_size} images for {world} processes with {parts} parts each; expected a multiple of "
                f"{world * parts}."
            )
        if len(data) < batch_size:
            raise InputError(f"{len(data)} training images do not fill one batch of {batch_size}; lower --batch-size.")
        self.data, self.size, self.augmentation = data, check_input_size(size), augmentation
        self.batch_size, self.seed, self.epoch = batch_size, seed, epoch
        self.rank, self.world, self.parts = rank, world, parts
        self._order = torch.randperm(len(data), generator=self._generator(_ORDER, 0))
        self._transform = train_transform(self.size, augmentation.strong)
        self._mosaic_transform = train_transform(self.size, augmentation.strong, mosaic=True)

    def __len__(self) -> int:
        return len(self._order) // self.batch_size * self.parts

    def __getitem__(self, number: int) -> Batch:
        step, part = divmod(number, self.parts)
        draws = self._generator(_STEP, step)
        chance, position = torch.rand(2, generator=draws).tolist()
        size = self._draw_size(draws)
        count = self.batch_size // (self.world * self.parts)
        first = (self.rank * self.parts + part) * count
        if chance < self.augmentation.mixup and self.batch_size > 1:
            # One more, in front: the first image is mixed with what stands before it in the batch of all processes.
            images, targets = self._load(step, range(first - 1, first + count))
            images, targets = mixup(images, targets, ratio=0.45 + 0.1 * position)
        else:
            images, targets = self._load(step, range(first, first + count))
        if size != self.size:
            # The nearest pixel, as the published models were trained: they have seen no other resampling here.
            images = F.interpolate(images, size=size, mode="nearest")
        return images, targets

    def sample(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """Return image `index` of the data as this epoch has it, before it is mixed: (3, height, width) and target."""
        with torch.random.fork_rng(devices=[]):
            # The CPU generator alone: torch.manual_seed would also reseed the accelerators of the process.
            torch.default_generator.manual_seed(sample_seed(self.seed, self.epoch, index))
            if torch.rand(()) >= self.augmentation.mosaic:
                return self._transform(*self.data.load(index))
            partners = torch.randint(len(self.data), (TILES - 1,)).tolist()
            samples = [self.data.load(tile) for tile in (index, *partners)]
            return self._mosaic_transform(*mosaic(samples, min(self.size) // 2))

    def _load(self, step: int, positions: range) -> Batch:
        """Make a batch of images by their positions within a step; position -1 is its last."""
        start = step * self.batch_size
        indices = [int(self._order[start + position % self.batch_size]) for position in positions]
        samples = {index: self.sample(index) for index in dict.fromkeys(indices)}
        return collate([samples[index] for index in indices])

    def _draw_size(self, draws: torch.Generator) -> tuple[int, int]:
        if self.augmentation.multi_scale is None:
            return self.size
        sizes = batch_sizes(self.size, self.augmentation.multi_scale)
        return sizes[int(torch.randint(len(sizes), (), generator=draws))]

    def _generator(self, purpose: int, number: int) -> torch.Generator:
        """Return a generator whose stream is unrelated to those of other purposes and numbers, and of images."""
        entropy = np.random.SeedSequence([self.seed, self.epoch, number], spawn_key=(purpose,))
        return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


def batch_sizes(size: tuple[int, int], repeat: int) -> list[tuple[int, int]]:
    """Return the sizes that batches are drawn in, one as likely as the other.

    The longer side goes from 3/4 to 5/4 of its length in steps of 32 pixels; the shorter one follows to the nearest
    multiple of 32.

    Args:
        size: (height, width), multiples of 32.
        repeat: how often `size` itself is among them.
    """
    longer = max(size)
    smallest, largest = (int(longer * factor) // STRIDE * STRIDE for factor in (0.75, 1.25))
    sizes = [size] * repeat
    for side in range(max(STRIDE, smallest), largest + 1, STRIDE):
        if side != longer:
            height, width = (max(STRIDE, round(length * side / longer / STRIDE) * STRIDE) for length in size)
            sizes.append((height, width))
    return sizes
