from collections.abc import Callable

import pytest

from detectors.training.batch_size import largest_batch_size
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
