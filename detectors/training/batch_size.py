"""How many images fit: `find_batch_size` for a run, `largest_batch_size` for whatever can be tried."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import distributed

import detectors
from detectors.detector import Detector
from vfmdistill.errors import InputError

from .dry_run import DryRun, Heaviest, OutOfMemory, dry_run
from .ema import WeightAverage
from .engine import Engine
from .memory import free_memory
from .recipe import Recipe
from .step import TrainStep
from .teaching import Teachers, attach_teachers

SPARE = 0.1  # part of the memory that is left: sizes that change from batch to batch leave gaps in it


def find_batch_size(
    recipe: Recipe,
    engine: Engine,
    model: Detector,
    teachers: Teachers,
    *,
    heaviest: Heaviest,
    limit: int,
) -> int:
    """Return the largest `batch_size` for a recipe: images per optimizer step, over all processes and parts.

    It is the heaviest step of the run that is tried, and a tenth of the memory is left. Learning rates do not follow
    the number that is found. Every process has to call it; they try on their own and agree on the smallest number.

    Args:
        recipe: of the run.
        engine: devices and processes.
        model: the detector, before the engine has placed or wrapped it; it moves to the device and stays as it is.
        teacher: the run's, or None.
        heaviest: what `heaviest_images` says of the run.
        limit: the largest number that is tried, for example the number of training images.

    Raises:
        OutOfMemory: not even one image fits in each process.
        InputError: the memory cannot be seen, weights are to be sharded, or the limit is less than one image a process
            and part.
    """
    if recipe.shard:
        raise InputError(
            "batch_size 'auto' does not go with --shard, whose share of the memory it cannot try; give a number."
        )
    model.to(engine.device)
    average = WeightAverage(model)  # a run has one beside it
    criterion = detectors.build_criterion(model.spec, num_classes=model.num_classes)
    distiller = None
    if teachers:
        distiller = attach_teachers(recipe, model, teachers, 1.0)
    try:
        step = TrainStep(engine, model, model, criterion, distiller, clip_norm=recipe.clip_norm, seed=recipe.seed)
        injectors = [] if distiller is None else [*distiller.parameters()]
        optimizer = torch.optim.AdamW([*model.parameters(), *injectors])
        parts = engine.world * recipe.accumulate
        if limit < parts:
            raise InputError(f"{limit} training images are too few for {parts} parts of a batch; lower --accumulate.")
        images = largest_batch_size(
            lambda images: dry_run(step, optimizer, images=images, heaviest=heaviest, spare=SPARE),
            limit=limit // parts,
            room=_room(engine) if engine.device.type == "cpu" else None,
        )
    finally:
        if distiller is not None:
            distiller.detach()
        del average
    if engine.world > 1:
        smallest = torch.tensor(images, device=engine.device)
        distributed.all_reduce(smallest, op=distributed.ReduceOp.MIN)
        images = int(smallest)
    return images * parts


def largest_batch_size(
    attempt: Callable[[int], DryRun], *, start: int = 1, limit: int, room: Callable[[], int | None] | None = None
) -> int:
    """Return the largest number of images that an attempt succeeds with.

    The number is doubled until an attempt fails, then the gap is halved. Where failing would end the process instead
    of raising, as on a CPU, an attempt is only made if the growth of the one before, in proportion to the images,
    leaves a tenth of the room.

    Args:
        attempt: takes a number of images and raises `OutOfMemory` where they do not fit, for example `dry_run`.
        start: the first number that is tried; must fit.
        limit: the largest number that is tried.
        room: returns how many bytes are free now; None relies on the attempts alone.

    Raises:
        OutOfMemory: `start` images do not fit.
        InputError: there is no room to be measured, or the numbers are out of order.
    """
    if not 1 <= start <= limit:
        raise InputError(f"batch sizes from {start} to {limit}; expected 1 ≤ start ≤ limit.")
    latest = attempt(start)
    fits, fails = start, limit + 1
    while fails - fits > 1:
        tried = min(2 * fits, limit) if fails > limit else (fits + fails) // 2
        try:
            _check_forecast(latest, tried, room)
            latest = attempt(tried)
        except OutOfMemory:
            fails = tried
        else:
            fits = tried
    return fits


def _check_forecast(latest: DryRun, images: int, room: Callable[[], int | None] | None) -> None:
    if room is None:
        return
    free = room()
    if free is None or latest.peak_bytes is None:
        raise InputError("batch_size 'auto' cannot see this machine's memory; give a number, as --batch-size 8.")
    forecast = latest.peak_bytes * images / latest.images
    if forecast > (1 - SPARE) * free:
        raise OutOfMemory(f"{images} images would take about {forecast / 2**30:.1f} of {free / 2**30:.1f} GiB.")


def _room(engine: Engine) -> Callable[[], int | None]:
    def room() -> int | None:
        free = free_memory()
        return None if free is None else free // engine.world

    return room
