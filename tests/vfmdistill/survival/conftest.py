from __future__ import annotations

from typing import Any

import pytest
from support.training_runs import parts, train


@pytest.fixture(scope="session")
def plain() -> dict[str, Any]:
    """A run of a student to which nothing is done."""
    student, teacher = parts()
    return train(student, teacher, slice(None))
