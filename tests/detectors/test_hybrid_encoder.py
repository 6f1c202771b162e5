from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from detectors.hybrid_encoder import AIFI, HybridEncoder, sine_positions

B0, B2, B4 = (256, 512, 1024), (384, 768, 1536), (512, 1024, 2048)


@pytest.mark.parametrize(
    ("in_channels", "options", "parameters"),
    # measured on the authors' encoders, RT-DETRv4 commit df44122: D-FINE N, S, M, L, X; RT-DETRv2 R18, R50-m, R50, R101
    [
        (B0[1:], {"dim": 128, "feedforward": 512, "expansion": 0.34, "depth": 0.5}, 703_824),
        (B0, {"expansion": 0.5, "depth": 0.34}, 4_021_504),
        (B2, {"depth": 0.67}, 7_799_040),
        (B4, {}, 9_343_232),
        (B4, {"dim": 384, "feedforward": 2048}, 20_700_032),
        ((128, 256, 512), {"fusion": "csp", "expansion": 0.5}, 4_965_120),
        (B4, {"fusion": "csp", "expansion": 0.5}, 5_653_248),
        (B4, {"fusion": "csp"}, 11_950_848),
        (B4, {"fusion": "csp", "dim": 384, "feedforward": 2048}, 26_577_536),
    ],
)
def test_number_of_parameters(in_channels: tuple[int, ...], options: dict[str, Any], parameters: int) -> None:
    with torch.device("meta"):
        encoder = HybridEncoder(in_channels, **options)
    assert sum(p.numel() for p in encoder.parameters()) == parameters


@pytest.mark.parametrize("fusion", ["elan", "csp"])
def test_sizes_stay_as_they_are(fusion: Any) -> None:
    encoder = HybridEncoder((4, 6, 8), dim=16, num_heads=2, feedforward=32, fusion=fusion, depth=0.34)
    features = [torch.rand(2, 4, 8, 12), torch.rand(2, 6, 4, 6), torch.rand(2, 8, 2, 3)]
    assert [tuple(x.shape) for x in encoder(features)] == [(2, 16, 8, 12), (2, 16, 4, 6), (2, 16, 2, 3)]


def test_every_output_sees_every_input() -> None:
    torch.manual_seed(0)
    encoder = HybridEncoder((4, 6, 8), dim=16, num_heads=2, feedforward=32, depth=0.34).eval()
    features = [torch.rand(1, 4, 8, 8), torch.rand(1, 6, 4, 4), torch.rand(1, 8, 2, 2)]
    before = encoder(features)
    for changed in range(3):
        after = encoder([x + (i == changed) for i, x in enumerate(features)])
        assert all(not torch.allclose(x, y) for x, y in zip(before, after, strict=True))


def test_positions_run_column_by_column() -> None:
    """With 4 dimensions the only frequency is 1, so each cell has sin x, cos x, sin y, cos y."""
    positions = sine_positions(2, 3, 4, 10000.0, torch.device("cpu"))
    x, y = torch.tensor([0.0, 0, 1, 1, 2, 2]), torch.tensor([0.0, 1, 0, 1, 0, 1])
    torch.testing.assert_close(positions, torch.stack([x.sin(), x.cos(), y.sin(), y.cos()], dim=1))


def test_frequencies_of_positions() -> None:
    """The second of two frequencies is 10000 to the power of −1/2."""
    positions = sine_positions(1, 2, 8, 10000.0, torch.device("cpu"))
    torch.testing.assert_close(positions[1, :2], torch.tensor([1.0, 0.01]).sin())


def test_aifi_takes_and_returns_maps() -> None:
    torch.manual_seed(0)
    aifi = AIFI(8, num_heads=2, feedforward=16)
    maps = torch.randn(3, 8, 2, 5)
    out = aifi(maps)
    assert out.shape == maps.shape
    assert out.is_contiguous()
    torch.testing.assert_close(aifi(maps[1:2]), out[1:2])
    # The layer ends in a norm over the channels of each cell.
    torch.testing.assert_close(out.mean(dim=1), torch.zeros(3, 2, 5), atol=1e-5, rtol=0)


def test_aifi_remembers_positions_per_size_outside_of_its_state() -> None:
    aifi = AIFI(8, num_heads=2, feedforward=16)
    keys = set(aifi.state_dict())
    for size in ((2, 3), (3, 2), (2, 3)):
        aifi(torch.rand(1, 8, *size))
    assert len(aifi._positions) == 2
    assert len(copy.deepcopy(aifi)._positions) == 0
    assert set(aifi.state_dict()) == keys == {name for name, _ in aifi.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_aifi_keeps_the_precision_of_its_input(dtype: torch.dtype) -> None:
    assert AIFI(8, num_heads=2, feedforward=16).to(dtype)(torch.rand(1, 8, 2, 2, dtype=dtype)).dtype == dtype
