from __future__ import annotations

import pytest
import torch

from vfmdistill.projectors import PROJECTORS


@pytest.mark.parametrize("name", PROJECTORS)
def test_maps_to_the_teachers_width_on_the_same_grid(name: str) -> None:
    assert PROJECTORS[name](6, 10)(torch.randn(2, 6, 3, 5)).shape == (2, 10, 3, 5)


def test_linear_is_one_linear_layer_on_each_cell() -> None:
    projector = PROJECTORS["linear"](6, 10)
    feature_map = torch.randn(2, 6, 3, 5)
    weight, bias = projector.state_dict().values()
    assert list(projector.state_dict()) == ["weight", "bias"]
    torch.testing.assert_close(projector(feature_map)[1, :, 2, 4], weight @ feature_map[1, :, 2, 4] + bias)


def test_size_of_the_published_projectors() -> None:
    # What the authors' deployed models carry too much (RT-DETRv4 commit df44122): S, M, L 256 wide, X 384 wide.
    for student_dim, expected in ((256, 197_376), (384, 295_680)):
        assert sum(p.numel() for p in PROJECTORS["linear"](student_dim, 768).parameters()) == expected


@pytest.mark.parametrize(("name", "reach"), [("linear", 0), ("mlp", 0), ("conv", 1)])
def test_how_far_a_cell_sees(name: str, reach: int) -> None:
    feature_map = torch.randn(1, 4, 5, 5, requires_grad=True)
    PROJECTORS[name](4, 3)(feature_map)[0, :, 2, 2].sum().backward()
    assert feature_map.grad is not None
    seen = feature_map.grad.abs().sum((0, 1)).nonzero()
    assert len(seen) == (2 * reach + 1) ** 2
