import runpy
from pathlib import Path

import pytest
import torch

from vfmdistill import adapters

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_adapter.py"


def test_an_adapter_of_ones_own_in_at_most_sixty_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_registered", [])
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    example = runpy.run_path(str(EXAMPLE))
    losses = example["main"]()
    assert losses[-1] < 0.5 * losses[0]
    assert len(adapters._registered) == 1
    images, feature_map = torch.rand(2, 3, 64, 96), torch.rand(2, 5, 4, 6)
    cells = [feature_map[:, :, row, column] for column in range(6) for row in range(4)]
    tokens = torch.stack([torch.rand(2, 5), *cells], dim=1)
    adapter = example["ColumnsAdapter"]()
    (tap,) = adapter.taps(example["Columns"]())
    assert torch.equal(adapter.feature_map(tap, tokens, images), feature_map)
