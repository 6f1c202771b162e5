from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detectors.decoders.deformable_attention import DeformableAttention, split_heads
from detectors.decoders.layers import MLP, AddNorm, DecoderLayer, Gate
from detectors.decoders.precision import at_least_float32


def test_mlp_has_activations_only_between_its_layers() -> None:
    torch.manual_seed(0)
    mlp = MLP(3, 5, 4, activation=nn.ReLU)
    first, second = mlp.layers
    x = torch.randn(2, 3)
    torch.testing.assert_close(mlp(x), second(first(x).relu()))
    assert (mlp(x) < 0).any()


def test_mlp_can_start_at_zero() -> None:
    assert MLP(3, 5, 4, activation=nn.SiLU, zero_last=True)(torch.randn(2, 3)).abs().max() == 0


def test_gate_starts_with_equal_shares() -> None:
    gate = Gate(6)
    kept, new = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    torch.testing.assert_close(gate(kept, new), F.layer_norm((kept + new) / 2, (6,)))


def test_gate_can_close_either_side() -> None:
    gate = Gate(6)
    kept, new = torch.randn(1, 2, 6), torch.randn(1, 2, 6)
    with torch.no_grad():
        gate.linear.bias.copy_(torch.tensor([20.0] * 6 + [-20.0] * 6))
    torch.testing.assert_close(gate(kept, new), F.layer_norm(kept, (6,)))


def small_layer() -> DecoderLayer:
    return DecoderLayer(8, 2, 16, nn.ReLU, sampling=DeformableAttention(8, 2, (1,)), merge=Gate(8)).eval()


def test_sum_of_two_streams_is_normalised() -> None:
    kept, new = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    torch.testing.assert_close(AddNorm(6)(kept, new), F.layer_norm(kept + new, (6,)))


def test_layer_hides_masked_queries() -> None:
    torch.manual_seed(0)
    layer = small_layer()
    values = split_heads([torch.randn(1, 8, 4, 4)], 2)
    boxes = torch.rand(1, 3, 4) * 0.5 + 0.25
    queries, positions = torch.randn(1, 3, 8), torch.randn(1, 3, 8)
    mask = torch.tensor([[False, False, True]] * 2 + [[False] * 3])  # the first two do not see the third
    changed = queries.clone()
    changed[:, 2] += 1
    before, after = (layer(x, positions, boxes, values, mask) for x in (queries, changed))
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])
    assert not torch.allclose(layer(queries, positions, boxes, values), layer(changed, positions, boxes, values))


def test_layer_survives_overflow_of_half_precision() -> None:
    layer = small_layer()
    nn.init.constant_(layer.feedforward[2].bias, torch.inf)
    values = split_heads([torch.randn(1, 8, 4, 4)], 2)
    out = layer(torch.randn(1, 3, 8), torch.zeros(1, 3, 8), torch.full((1, 3, 4), 0.5), values)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_precision_is_raised_and_never_lowered(given: torch.dtype, expected: torch.dtype) -> None:
    assert at_least_float32(torch.ones(1, dtype=given)).dtype == expected
