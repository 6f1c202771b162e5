from __future__ import annotations

import pytest
import torch
from support.students import Classifier


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def student() -> Classifier:
    return Classifier()
