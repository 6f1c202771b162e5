from __future__ import annotations

import math

import pytest
import torch

from detectors.decoders.distribution import boxes_to_bins, distances_to_boxes, weighting_function
from detectors.losses.localization import (
    decoupled_distillation_focal_loss,
    decoupled_mean,
    fine_grained_localization_loss,
    matched_share,
)

# The authors' code (RT-DETRv4 commit df44122), float64: W(n) for reg_max 32, up 0.5 and reg_scale 4, the upper half.
UPPER_OFFSETS = [
    *(0.0, 0.07599, 0.15775, 0.24573, 0.34039, 0.44225, 0.55185, 0.66977),
    *(0.79665, 0.93318, 1.08008, 1.23815, 1.40822, 1.59122, 1.78813, 2.0, 4.0),
]


def test_weighting_function():
    offsets = weighting_function(32, torch.tensor([0.5]), torch.tensor([4]))
    assert offsets.shape == (33,)
    assert offsets[16:].tolist() == pytest.approx(UPPER_OFFSETS, abs=1e-5)
    assert torch.equal(offsets, -offsets.flip(0))
    assert torch.all(offsets.diff() > 0)


def test_weighting_function_keeps_float64_raises_half_and_takes_numbers():
    assert weighting_function(32, torch.tensor([0.5], dtype=torch.float64), 8.0).dtype == torch.float64
    half = weighting_function(32, torch.tensor([0.5], dtype=torch.bfloat16), torch.tensor([4.0], dtype=torch.bfloat16))
    assert torch.equal(half, weighting_function(32, 0.5, 4.0))
    torch.testing.assert_close(
        weighting_function(16, 0.5, 8.0), weighting_function(16, torch.tensor([0.5]), torch.tensor([8.0]))
    )


def test_distances_move_edges_outwards():
    reference = torch.tensor([0.5, 0.5, 0.4, 0.2])
    assert torch.equal(distances_to_boxes(reference, torch.zeros(4), 4.0), reference)
    # one unit is a quarter of the reference's size: left edge 0.1 to the left, bottom edge 0.05 down
    moved = distances_to_boxes(reference, torch.tensor([1.0, 0.0, 0.0, 1.0]), 4.0)
    assert moved.tolist() == pytest.approx([0.45, 0.525, 0.5, 0.25])


def test_bins_invert_distances():
    generator = torch.Generator().manual_seed(0)
    reference = 0.1 + 0.5 * torch.rand(50, 4, generator=generator, dtype=torch.float64)
    distances = 7 * torch.rand(50, 4, generator=generator, dtype=torch.float64) - 3.5
    up, scale = torch.tensor([0.5], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)
    lower, upper_weight = boxes_to_bins(reference, distances_to_boxes(reference, distances, scale), 32, up, scale)
    offsets = weighting_function(32, up, scale)
    torch.testing.assert_close(torch.lerp(offsets[lower], offsets[lower + 1], upper_weight), distances)


def test_bins_beyond_the_ends_are_drawn_to_them():
    reference = torch.tensor([[0.5, 0.5, 0.1, 0.1]])
    lower, upper_weight = boxes_to_bins(reference, torch.tensor([[0.5, 0.5, 0.9, -0.4]]), 32, 0.5, 4.0)
    assert lower.tolist() == [[31, 0, 31, 0]]
    assert upper_weight.tolist() == [[1, 0, 1, 0]]


def test_bins_of_a_reference_without_size_are_finite():
    lower, upper_weight = boxes_to_bins(torch.zeros(1, 4), torch.tensor([[0.0, 0.5, 0.0, 0.2]]), 32, 0.5, 4.0)
    assert upper_weight.isfinite().all()
    assert lower[0, 1].item() == 0  # the top edge lies far inside the reference
    assert lower[0, 3].item() == 31


def test_fine_grained_loss_by_hand():
    """Edges exactly on the reference: all weight on bin 16. Uniform logits cost log 33 an edge, times the IoU."""
    box = torch.tensor([[0.5, 0.5, 0.4, 0.2]], dtype=torch.float64)
    corners = torch.zeros(1, 4, 33, dtype=torch.float64)
    quality = torch.tensor([0.7], dtype=torch.float64)
    loss = fine_grained_localization_loss(corners, box, box, quality, 0.5, 4.0)
    assert loss.tolist() == pytest.approx([0.7 * 4 * math.log(33)])
    corners[..., 16] = 50.0
    assert fine_grained_localization_loss(corners, box, box, quality, 0.5, 4.0).item() == pytest.approx(0, abs=1e-6)


def test_fine_grained_loss_shares_between_neighbours():
    reference = torch.tensor([[0.5, 0.5, 0.4, 0.2]])
    distance = 0.25 * UPPER_OFFSETS[3] + 0.75 * UPPER_OFFSETS[4]
    target = distances_to_boxes(reference, torch.full((1, 4), distance), 4.0)
    corners = torch.zeros(1, 4, 33)
    corners[..., 19], corners[..., 20] = 2.0, 1.0
    normaliser = math.log(31 + math.exp(2) + math.exp(1))
    expected = 4 * (0.25 * (normaliser - 2) + 0.75 * (normaliser - 1))
    loss = fine_grained_localization_loss(corners, reference, target, torch.ones(1), 0.5, 4.0)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_distillation_by_hand():
    """Two bins, temperature 1: KL([0.8, 0.2] ‖ [0.5, 0.5]) on one edge of four."""
    corners = torch.zeros(1, 4, 2, requires_grad=True)
    teacher = torch.zeros(1, 4, 2, requires_grad=True)
    with torch.no_grad():
        teacher[0, 0, 0] = math.log(4)
    divergence = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    loss = decoupled_distillation_focal_loss(corners, teacher, torch.tensor([0.6]), temperature=1.0)
    assert loss.tolist() == pytest.approx([0.6 * divergence / 4])
    loss.sum().backward()
    assert corners.grad is not None
    assert teacher.grad is None


def test_distillation_of_equal_distributions_is_nothing():
    corners = torch.randn(20, 4, 33, generator=torch.Generator().manual_seed(0))
    assert decoupled_distillation_focal_loss(corners, corners, torch.ones(20)).abs().max() < 1e-5


def test_decoupled_mean():
    values = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    matched = torch.tensor([[[True, False, False, False]]])
    assert decoupled_mean(values, matched, 1, 3, 0.25).tolist() == pytest.approx([0.25 * 1 + 0.75 * 3])
    assert decoupled_mean(values, ~matched & matched, 1, 4, 0.0).tolist() == [2.5]
    assert decoupled_mean(values, matched | ~matched, 4, 1, 1.0).tolist() == [2.5]


def test_decoupled_mean_of_parts_is_that_of_the_whole():
    values = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0))
    matched = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(1)) < 0.3
    matched = matched[:1].expand(2, -1, -1)
    count = matched[0].sum()
    parts = [
        decoupled_mean(values[:, i : i + 2], matched[:, i : i + 2], count / 2, 10 - count / 2, 0.3) for i in (0, 2)
    ]
    whole = decoupled_mean(values, matched, count, 20 - count, 0.3)
    torch.testing.assert_close(torch.stack(parts).mean(0), whole)


def test_matched_share():
    assert matched_share(torch.tensor(4.0), torch.tensor(16.0)).item() == pytest.approx(2 / 6)
    assert matched_share(torch.tensor(0.0), torch.tensor(16.0)).item() == 0
    assert matched_share(torch.tensor(5.0), torch.tensor(0.0)).item() == 1
    assert matched_share(torch.tensor(0.0), torch.tensor(0.0)).item() == 0
