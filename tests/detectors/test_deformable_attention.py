from __future__ import annotations

import pytest
import torch

from detectors.decoders.deformable_attention import DeformableAttention, sample, split_heads


def ramp(height: int, width: int) -> torch.Tensor:
    """Return a map (1, 1, h, w) whose value at each cell's centre is its x in [0, 1]."""
    return ((torch.arange(width) + 0.5) / width).expand(1, 1, height, width)


def test_sample_interpolates_between_cells() -> None:
    locations = torch.tensor([0.3, 0.5, 0.61]).view(1, 3, 1, 1, 1) * torch.ones(2)
    out = sample([ramp(4, 8)], locations, torch.ones(1, 3, 1, 1), [1])
    torch.testing.assert_close(out.flatten(), torch.tensor([0.3, 0.5, 0.61]))


def test_sample_reads_zero_outside() -> None:
    locations = torch.tensor([[-0.5, 0.5], [0.5, 1.5]]).view(1, 2, 1, 1, 2)
    assert sample([torch.ones(1, 1, 4, 4)], locations, torch.ones(1, 2, 1, 1), [1]).abs().max() == 0


def test_sample_sums_over_levels_and_points_by_weight() -> None:
    values = [torch.full((1, 1, 4, 4), 1.0), torch.full((1, 1, 2, 2), 10.0)]
    weights = torch.tensor([0.1, 0.2, 0.7]).view(1, 1, 1, 3)
    out = sample(values, torch.full((1, 1, 1, 3, 2), 0.5), weights, [2, 1])
    torch.testing.assert_close(out.flatten(), torch.tensor([0.3 * 1 + 0.7 * 10]))


def test_heads_read_their_own_channels() -> None:
    """Each head reads channels of its own, and images do not mix."""
    maps = torch.arange(2 * 4).view(2, 4, 1, 1).expand(2, 4, 3, 3).float()
    values = split_heads([maps], num_heads=2)
    assert values[0].shape == (4, 2, 3, 3)
    out = sample(values, torch.full((2, 1, 2, 1, 2), 0.5), torch.ones(2, 1, 2, 1), [1])
    torch.testing.assert_close(out, maps[:, :, 0, 0].unsqueeze(1))


def test_heads_start_in_evenly_spread_directions() -> None:
    """The k-th point of a level lies k steps away, in the direction of its head; the longer component is one step."""
    attention = DeformableAttention(16, num_heads=8, num_points=(3, 2))
    offsets = attention.offsets.bias.view(8, 5, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, direction in enumerate(directions):
        for point, steps in enumerate((1, 2, 3, 1, 2)):
            expected = steps * torch.tensor(direction, dtype=torch.float32)
            torch.testing.assert_close(offsets[head, point], expected, atol=1e-5, rtol=0)
    assert attention.offsets.weight.abs().max() == 0
    assert attention.weights.weight.abs().max() == attention.weights.bias.abs().max() == 0


def test_points_reach_in_proportion_to_the_box() -> None:
    """At the start a single point lies half a box size from the centre: to the right for the first of four heads."""
    attention = DeformableAttention(4, num_heads=4, num_points=(1,))
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.4]]])
    values = split_heads([torch.cat([ramp(20, 20)] * 4, dim=1)], num_heads=4)
    read = attention(torch.zeros(1, 1, 4), boxes, values)
    torch.testing.assert_close(read.flatten(), torch.tensor([0.6, 0.5, 0.4, 0.5]))


def test_points_of_a_level_share_the_reach() -> None:
    """The mean of the points at 1/2 and 2/2 of half a box to the right is 3/4 of it."""
    attention = DeformableAttention(1, num_heads=1, num_points=(2,))
    read = attention(torch.zeros(1, 1, 1), torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]), split_heads([ramp(20, 20)], 1))
    torch.testing.assert_close(read.flatten(), torch.tensor([0.65]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_in_float32_and_returned_as_it_came(dtype: torch.dtype) -> None:
    values = split_heads([ramp(8, 8).to(dtype)], 1)
    assert values[0].dtype == torch.float32
    attention = DeformableAttention(1, 1, (1,)).to(dtype)
    read = attention(torch.zeros(1, 1, 1, dtype=dtype), torch.tensor([[[0.3, 0.5, 0.2, 0.2]]]), values)
    assert read.dtype == dtype
    assert read.item() == pytest.approx(0.4, rel=4e-3)


def test_constants_stay_out_of_the_state_dict() -> None:
    assert set(DeformableAttention(8, 2, (1, 2)).state_dict()) == {
        "offsets.weight", "offsets.bias", "weights.weight", "weights.bias",
    }  # fmt: skip
