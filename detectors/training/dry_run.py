"""dry_run: the heaviest step of a run before its first, so that memory runs out in the first minute or not at all."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor

from detectors.data.batches import batch_sizes
from detectors.data.mosaic import TILES
from vfmdistill.errors import InputError

from .buffer_guard import BufferGuard
from .memory import PeakMemory, total_memory
from .recipe import Recipe
from .rng_state import RngState

if TYPE_CHECKING:
    from .step import TrainStep

GIB = 2**30


class OutOfMemory(InputError):  # noqa: N818
    """So many images do not fit into the device's memory."""


class Heaviest(NamedTuple):
    """The images that take the most memory."""

    size: tuple[int, int]
    """Height and width in pixels."""
    boxes: int
    """Objects in every image."""


class DryRun(NamedTuple):
    """What a step of the heaviest kind took."""

    images: int
    """Images at once in this process."""
    heaviest: Heaviest
    """What they were like."""
    seconds: float
    peak_bytes: int | None
    """See `PeakMemory`."""
    total_bytes: int | None
    """What the device has; None on the CPU."""

    def __str__(self) -> str:
        if self.peak_bytes is None:
            memory = "memory cannot be measured here"
        elif self.total_bytes is None:
            memory = f"memory grew by {self.peak_bytes / GIB:.2f} GiB"
        else:
            memory = f"{self.peak_bytes / GIB:.2f} of {self.total_bytes / GIB:.2f} GiB of memory"
        return f"dry run of {_described(self.images, self.heaviest)}: {memory}, {self.seconds:.1f} s"


def dry_run(
    step: TrainStep,
    optimizer: torch.optim.Optimizer,
    *,
    images: int,
    heaviest: Heaviest,
    spare: float = 0.0,
) -> DryRun:
    """Run forward, losses and backward once, beside as much memory as the optimizer's state will take.

    Model, buffers, gradients, optimizer, λ and random numbers are as they were afterwards. Every process has to call
    it.

    Args:
        step: what trains the model.
        optimizer: as built for it; of parameters without a state yet, two numbers for each weight are set aside, as
            AdamW keeps them.
        images: images at once in this process: those of a step, over processes and parts.
        heaviest: what `heaviest_images` says of the run.
        spare: part of a CUDA device's memory that must be left.

    Raises:
        OutOfMemory: it does not fit; the message says what to do. On the CPU the system may end the process instead.
        NonFiniteError: the weights give predictions that are not finite.
    """
    device, total = step.engine.device, total_memory(step.engine.device)
    batch = _batch(images, heaviest, step.model.num_classes, device)
    failure = None
    started = time.perf_counter()
    with PeakMemory(device) as peak, _undone(step):
        try:
            held = _optimizer_state(optimizer)
            if total is not None and spare > 0:
                held.append(torch.empty(int(spare * total), dtype=torch.uint8, device=device))
            step.model.train()
            _backward(step, *batch)
            if step.distiller is not None and device.type == "cuda":  # from the second on the teacher runs beside it
                _backward(step, *batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error).split("\n")[0]
        held = []
    # Only here, where the error is gone and with it everything that its frames held on to
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    if failure is not None:
        raise OutOfMemory(
            f"{_described(images, heaviest)} do not fit into the memory of {device}: {failure} "
            "Lower --batch-size, or raise --accumulate to take it in more parts; --precision bf16 and a smaller "
            "--input-size need less too. Only the fullest images together are that heavy: --no-dry-run goes without."
        )
    return DryRun(images, heaviest, time.perf_counter() - started, peak.bytes, total)


def heaviest_images(recipe: Recipe, counts: Sequence[int]) -> Heaviest:
    """Return the largest images that a run can draw, with the most objects.

    Args:
        recipe: of the run.
        counts: objects of each training image. As many of the fullest as augmentation brings into one image, four by a
            mosaic and twice as many by mixup, are taken to meet there.
    """
    sizes, meeting = {recipe.input_size}, 1
    for epoch in range(recipe.epochs):
        augmentation = recipe.augmentation(epoch)
        if augmentation.multi_scale is not None:
            sizes.update(batch_sizes(recipe.input_size, augmentation.multi_scale))
        meeting = max(meeting, (TILES if augmentation.mosaic > 0 else 1) * (2 if augmentation.mixup > 0 else 1))
    return Heaviest(max(sizes, key=math.prod), sum(sorted(counts)[-meeting:]))


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory ran out, on whatever device."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _backward(step: TrainStep, images: Tensor, targets: list[dict[str, Tensor]]) -> None:
    with step.engine.autocast():
        outputs = step.network(images, targets)
    # Counts of one's own: of several processes none waits here for another that has run out of memory.
    matching = step.criterion.match(outputs, targets)
    losses: dict[str, Tensor] = step.criterion(outputs, targets, matching, matching.counts)
    if step.distiller is not None:
        losses["loss_semantic"] = step.distiller.loss(images)
    step.engine.backward(torch.stack(list(losses.values())).sum())


def _batch(
    images: int, heaviest: Heaviest, num_classes: int, device: torch.device
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Draw noise with boxes in it, from a generator of its own."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(images, 3, *heaviest.size, generator=generator)
    targets = []
    for _ in range(images):
        sides = 0.05 + 0.25 * torch.rand(heaviest.boxes, 2, generator=generator)
        centres = sides / 2 + (1 - sides) * torch.rand(heaviest.boxes, 2, generator=generator)
        labels = torch.randint(num_classes, (heaviest.boxes,), generator=generator)
        targets.append({"labels": labels.to(device), "boxes": torch.cat([centres, sides], 1).to(device)})
    return pixels.to(device), targets


def _optimizer_state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return as much memory as the optimizer will take for the parameters that it has no state of yet."""
    fresh = [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and not optimizer.state.get(parameter)
    ]
    return [torch.zeros_like(parameter) for parameter in fresh for _ in range(2)]


@contextmanager
def _undone(step: TrainStep) -> Iterator[None]:
    """Start without gradients; on leaving give back what a forward and a backward change."""
    parameters = [*step.model.parameters(), *(step.distiller.parameters() if step.distiller is not None else ())]
    gradients = [parameter.grad for parameter in parameters]
    modes = [(module, module.training) for module in step.model.modules()]
    buffers, rng = BufferGuard(step.model), RngState.take(step.engine.device)
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for module, training in modes:
            module.training = training
        buffers.restore()
        rng.restore(step.engine.device)
        if step.distiller is not None:
            step.distiller.discard()


def _described(images: int, heaviest: Heaviest) -> str:
    noun = "image" if images == 1 else "images"
    return f"{images} {noun} of {' × '.join(map(str, heaviest.size))} with {heaviest.boxes} boxes each"
