from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from detectors.data.augmentation import Augmentation
from vfmdistill.errors import InputError


def test_nothing_is_applied_unless_asked_for() -> None:
    assert Augmentation() == Augmentation(strong=False, mosaic=0.0, mixup=0.0, multi_scale=None)


def test_it_does_not_change_under_the_workers() -> None:
    with pytest.raises(FrozenInstanceError):
        Augmentation().mosaic = 0.5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mosaic": 1.1}, r"the probability mosaic is 1\.1; expected a number from 0 to 1"),
        ({"mixup": -0.1}, r"the probability mixup is -0\.1; expected a number from 0 to 1"),
        ({"mixup": float("nan")}, r"the probability mixup is nan"),
        ({"multi_scale": 0}, r"multi_scale is 0; expected .* 1 or more, or None for one size"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augmentation(**settings)
