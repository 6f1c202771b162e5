from __future__ import annotations

import multiprocessing
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.tiny_run import tiny_recipe
from torch.utils.data import DataLoader, Dataset

from detectors.data.augmentation import Augmentation
from detectors.data.batches import Batch
from detectors.data.coco import CocoDataset
from detectors.data.layout import locate_split
from detectors.training.loaders import TrainLoader, plainly, val_loader
from detectors.training.recipe import Recipe
from vfmdistill.errors import InputError

EPOCH = 4  # of these ten, the fifth is a dense one


@pytest.fixture
def data(toy: Path) -> CocoDataset:
    return CocoDataset(*locate_split(toy, "train"))


def processes(rank: int = 0, world: int = 1) -> Any:
    return SimpleNamespace(process_index=rank, num_processes=world, device=torch.device("cpu"))


def recipe(**overrides: Any) -> Recipe:
    settings = {"epochs": 10, "augmented_from": 1, "dense_until": 6, "flat_until": 6, "accumulate": 2, "multi_scale": 1}
    return tiny_recipe("data", "run", **{**settings, **overrides})


def same(one: list[list[Batch]], other: list[list[Batch]]) -> bool:
    def tensors(steps: list[list[Batch]]) -> list[torch.Tensor]:
        return [
            tensor
            for step in steps
            for images, targets in step
            for tensor in (images, *(value for target in targets for value in target.values()))
        ]

    mine, yours = tensors(one), tensors(other)
    return len(mine) == len(yours) and all(torch.equal(a, b) for a, b in zip(mine, yours, strict=True))


def test_the_tested_epoch_is_a_dense_one() -> None:
    assert recipe().augmentation(EPOCH) == Augmentation(strong=True, mosaic=0.5, mixup=0.5, multi_scale=1)


def test_steps_are_lists_of_parts(data: CocoDataset) -> None:
    loader = TrainLoader(data, recipe(), processes())
    steps = list(loader.epoch(EPOCH))
    assert len(steps) == len(loader) == 3
    for step in steps:
        assert [(len(images), len(targets)) for images, targets in step] == [(2, 2), (2, 2)]
        assert all(images.dtype == torch.float32 for images, _ in step)
        assert step[0][0].shape == step[1][0].shape


def test_every_stage_has_its_augmentation(data: CocoDataset) -> None:
    loader = TrainLoader(data, recipe(), processes())
    stages = [loader.batches(epoch).augmentation for epoch in range(10)]
    assert stages[0] == Augmentation(multi_scale=1)
    assert stages[1:6] == [Augmentation(strong=True, mosaic=0.5, mixup=0.5, multi_scale=1)] * 5
    assert stages[6:9] == [Augmentation(strong=True, multi_scale=1)] * 3
    assert stages[9] == Augmentation()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_wherever_one_starts_and_whoever_makes_them(data: CocoDataset, workers: int) -> None:
    expected = list(TrainLoader(data, recipe(), processes()).epoch(EPOCH))
    loader = TrainLoader(data, recipe(workers=workers), processes())
    torch.manual_seed(77)
    state = torch.get_rng_state()
    for first in range(len(loader) + 1):
        assert same(list(loader.epoch(EPOCH, first)), expected[first:])
    assert torch.equal(torch.get_rng_state(), state)
    assert not same(list(loader.epoch(EPOCH + 1)), expected)


def test_an_epoch_given_up_half_way_does_not_change_the_next(data: CocoDataset) -> None:
    loader = TrainLoader(data, recipe(workers=2), processes())
    expected = list(loader.epoch(EPOCH))
    given_up = loader.epoch(EPOCH)
    next(given_up)
    given_up.close()  # type: ignore[attr-defined]
    assert same(list(loader.epoch(EPOCH)), expected)


def test_processes_share_the_images_of_a_step(data: CocoDataset) -> None:
    (alone,) = zip(*(TrainLoader(data, recipe(accumulate=1), processes()).epoch(EPOCH)), strict=True)
    both = [list(TrainLoader(data, recipe(), processes(rank, 2)).epoch(EPOCH)) for rank in range(2)]
    for number, (images, targets) in enumerate(alone):
        pieces = [part for steps in both for part in steps[number]]
        assert [len(piece) for piece, _ in pieces] == [1, 1, 1, 1]
        assert torch.equal(torch.cat([piece for piece, _ in pieces]), images)
        joined = [target for _, found in pieces for target in found]
        assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(joined, targets, strict=True))


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the platform does not tell who sent a signal")
def test_workers_outlive_the_signals_that_end_a_run(data: CocoDataset) -> None:
    loader = TrainLoader(data, recipe(workers=2), processes())
    expected = list(loader.epoch(EPOCH))
    before = {child.pid for child in multiprocessing.active_children()}
    steps = loader.epoch(EPOCH)
    first = next(steps)
    workers = [child for child in multiprocessing.active_children() if child.pid not in before]
    assert len(workers) == 2
    for worker in workers:
        # From another process: the training process itself may end them.
        subprocess.run(["sh", "-c", f"kill -INT {worker.pid}; kill -TERM {worker.pid}"], check=True)
    time.sleep(0.2)
    assert same([first, *steps], expected)
    del steps
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0


def test_the_training_process_ends_its_workers(data: CocoDataset) -> None:
    # At the end of a program that failed inside an epoch nothing but this signal reaches them.
    before = {child.pid for child in multiprocessing.active_children()}
    steps = TrainLoader(data, recipe(workers=1, batch_size=2, accumulate=1), processes()).epoch(EPOCH)
    next(steps)
    (worker,) = (child for child in multiprocessing.active_children() if child.pid not in before)
    worker.terminate()
    worker.join(timeout=60)
    assert worker.exitcode == 0


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_validation_takes_every_image_once(toy: Path, world: int) -> None:
    found: list[int] = []
    for rank in range(world):
        data = CocoDataset(*locate_split(toy, "val"))
        loader = val_loader(data, recipe(), processes(rank, world))
        for images, targets in loader:
            assert images.shape[1:] == (3, 64, 64)
            assert len(images) <= 2
            found += [int(target["image_id"]) for target in targets]
    data = CocoDataset(*locate_split(toy, "val"))
    assert sorted(found) == sorted(int(data.load(index)[1]["image_id"]) for index in range(len(data)))


def test_batches_must_fit_processes_and_parts(data: CocoDataset) -> None:
    with pytest.raises(InputError, match="a batch of 4 images for 3 processes with 2 parts each"):
        TrainLoader(data, recipe(), processes(world=3))
    with pytest.raises(InputError, match="13 training images do not fill one batch of 16"):
        TrainLoader(data, recipe(batch_size=16), processes())
    with pytest.raises(InputError, match="batch_size is 'auto'; loaders need a number"):
        TrainLoader(data, recipe(batch_size="auto"), processes())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_sample_that_fails_is_named_without_the_workers_stack(workers: int) -> None:
    class Broken(Dataset[Batch]):
        def __getitem__(self, index: int) -> Batch:
            raise InputError("cats/4.jpg cannot be read: truncated")

        def __len__(self) -> int:
            return 2

    loader = DataLoader(Broken(), batch_size=None, num_workers=workers)
    with pytest.raises(InputError) as caught:
        list(plainly(loader))
    assert str(caught.value) == "cats/4.jpg cannot be read: truncated"
