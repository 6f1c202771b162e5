from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detectors.decoders.query_selection import QuerySelection, grid_anchors, prior_bias


def test_prior_bias_gives_the_probability_back() -> None:
    assert torch.tensor(prior_bias()).sigmoid().item() == pytest.approx(0.01)
    assert prior_bias(0.5) == 0


def test_anchors_stand_on_cell_centres_row_by_row() -> None:
    anchors, usable = grid_anchors([(2, 4), (1, 2)], torch.device("cpu"))
    boxes = anchors.sigmoid()
    assert boxes.shape == (10, 4)
    assert usable.all()
    torch.testing.assert_close(boxes[1], torch.tensor([0.375, 0.25, 0.05, 0.05]))
    torch.testing.assert_close(boxes[4], torch.tensor([0.125, 0.75, 0.05, 0.05]))
    torch.testing.assert_close(boxes[9], torch.tensor([0.75, 0.5, 0.1, 0.1]))


def test_anchors_at_the_border_are_finite_but_not_usable() -> None:
    """At 640 × 640 and stride 8 the outermost of 80 cells is centred at 0.00625, nearer than 0.01 to the border."""
    anchors, usable = grid_anchors([(80, 80), (40, 40)], torch.device("cpu"))
    assert anchors.isfinite().all()
    inside = torch.zeros(80, 80, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    assert torch.equal(usable, torch.cat([inside.flatten(), torch.ones(1600, dtype=torch.bool)]))
    assert (anchors[~usable].sigmoid() == 1).all()  # what the authors' infinite logits give


def test_border_cells_are_seen_as_zero_and_stand_for_the_far_corner() -> None:
    """They are chosen where zero scores best, as in the authors' networks; no gradient of theirs is NaN."""
    selection = QuerySelection(4, 1, nn.ReLU)
    selection.norm = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        for linear in (selection.projection, selection.score_head):
            linear.weight.copy_(torch.eye(4)[: linear.out_features])
            linear.bias.zero_()
    maps = torch.full((1, 4, 60, 60), -1.0, requires_grad=True)  # zero scores 0, everything else −1
    border = 60 * 60 - 58 * 58
    selected = selection([maps], num_queries=border + 1)
    assert (selected.logits[:, :border] == 0).all()
    assert selected.logits[:, border] == -1
    assert (selected.boxes.sigmoid()[:, :border] == 1).all()
    assert (selected.boxes.sigmoid()[:, border] < 1).all()
    (selected.boxes.sigmoid().sum() + selected.logits.sum()).backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_takes_the_best_cells() -> None:
    torch.manual_seed(0)
    selection = QuerySelection(8, 3, nn.ReLU)
    maps = [torch.randn(2, 8, 6, 6), torch.randn(2, 8, 3, 3)]
    everything = selection(maps, num_queries=1000)
    assert everything.logits.shape == (2, 45, 3)
    best = everything.logits.amax(dim=2)
    assert torch.equal(best, best.sort(dim=1, descending=True).values)
    few = selection(maps, num_queries=5)
    for part, whole in zip(few, everything, strict=True):
        torch.testing.assert_close(part, whole[:, :5])


def test_boxes_start_at_the_anchors() -> None:
    selection = QuerySelection(8, 3, nn.ReLU)
    chosen = selection([torch.randn(1, 8, 2, 2)], num_queries=4).boxes.sigmoid()[0]
    row_by_row = (chosen[:, 0] + 2 * chosen[:, 1]).argsort()
    torch.testing.assert_close(chosen[row_by_row], grid_anchors([(2, 2)], torch.device("cpu"))[0].sigmoid())


def test_anchors_are_remembered_per_size_outside_of_the_state() -> None:
    selection = QuerySelection(8, 3, nn.ReLU)
    for size in ((4, 4), (2, 3), (4, 4)):
        selection([torch.randn(1, 8, *size)], num_queries=2)
    assert len(selection._anchors) == 2
    assert set(selection.state_dict()) == {name for name, _ in selection.named_parameters()}


def test_half_precision_boxes_are_float32() -> None:
    selection = QuerySelection(8, 3, nn.ReLU).bfloat16()
    selected = selection([torch.randn(1, 8, 4, 4, dtype=torch.bfloat16)], num_queries=3)
    assert selected.boxes.dtype == torch.float32
    assert selected.logits.dtype == torch.bfloat16
    assert math.isfinite(selected.boxes.sum().item())
