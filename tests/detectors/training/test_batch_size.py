from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.tiny_step import tiny_step
from torch import Tensor, nn

import vfmdistill
from detectors.training.batch_size import find_batch_size, largest_batch_size
from detectors.training.dry_run import DryRun, Heaviest, OutOfMemory
from vfmdistill.errors import InputError

MIB = 2**20


def attempts(most: int, tried: list[int], base: int = 100, each: int = 50) -> Callable[[int], DryRun]:
    """Return an attempt that fails beyond `most` images and takes `base` + `each` · images MiB."""

    def attempt(images: int) -> DryRun:
        tried.append(images)
        if images > most:
            raise OutOfMemory("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return DryRun(images, Heaviest((64, 64), 3), 0.1, (base + each * images) * MIB, None)

    return attempt


@pytest.mark.parametrize("most", [1, 2, 3, 7, 8, 23, 63, 64])
@pytest.mark.parametrize("start", [1, 3])
def test_exactly_the_largest_that_fits_is_found(most: int, start: int) -> None:
    if most < start:
        with pytest.raises(OutOfMemory):
            largest_batch_size(attempts(most, []), start=start, limit=64)
    else:
        assert largest_batch_size(attempts(most, []), start=start, limit=64) == most


def test_nothing_is_tried_twice_or_beyond_the_limit() -> None:
    tried: list[int] = []
    assert largest_batch_size(attempts(1000, tried), limit=50) == 50
    assert tried == [1, 2, 4, 8, 16, 32, 50]
    tried.clear()
    assert largest_batch_size(attempts(21, tried), limit=50) == 21
    assert tried == [1, 2, 4, 8, 16, 32, 24, 20, 22, 21]


def test_where_failing_is_fatal_nothing_is_tried_that_the_forecast_rules_out() -> None:
    tried: list[int] = []
    room = 2000 * MIB
    found = largest_batch_size(attempts(10**6, tried), limit=256, room=lambda: room)
    assert all((100 + 50 * images) * MIB < 0.9 * room for images in tried)
    assert found == 33  # whose 1750 MiB make 34 images out to take 1803 of the 1800


def test_without_a_view_of_the_memory_nothing_is_guessed() -> None:
    with pytest.raises(InputError, match="cannot see this machine's memory; give a number"):
        largest_batch_size(attempts(64, []), limit=64, room=lambda: None)


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def attempt(images: int) -> DryRun:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        largest_batch_size(attempt, limit=4)


def test_limits_out_of_order() -> None:
    with pytest.raises(InputError, match="from 5 to 4"):
        largest_batch_size(attempts(64, []), start=5, limit=4)


def test_a_run_gets_the_largest_batch_of_all_its_parts(tmp_path: Path) -> None:
    """On a device that has room for five images in training, as far as the run can see."""
    recipe, step, _ = tiny_step(tmp_path, accumulate=3, batch_size="auto")
    teacher = vfmdistill.Teacher("tiny")
    before = {key: value.clone() for key, value in step.model.state_dict().items()}
    tried: list[int] = []

    def forward(module: nn.Module, args: tuple[Tensor, object]) -> None:
        if module.training:
            tried.append(len(args[0]))
            if len(args[0]) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = step.model.register_forward_pre_hook(forward)
    hooks = len(step.model.encoder.aifi._forward_hooks)
    state = torch.get_rng_state()
    found = find_batch_size(recipe, step.engine, step.model, teacher, heaviest=Heaviest((64, 64), 3), limit=100)
    handle.remove()
    assert found == 5 * 3
    assert tried == [1, 2, 4, 8, 6, 5]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in step.model.state_dict().items())
    assert len(step.model.encoder.aifi._forward_hooks) == hooks


def test_sharded_runs_need_a_number(tmp_path: Path) -> None:
    recipe, step, _ = tiny_step(tmp_path, teacher=None, batch_size="auto")
    sharded = recipe.model_copy(update={"shard": True})
    with pytest.raises(InputError, match="does not go with --shard"):
        find_batch_size(sharded, step.engine, step.model, None, heaviest=Heaviest((64, 64), 3), limit=100)
