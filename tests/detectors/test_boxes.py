from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou

from detectors.losses.boxes import box_l1_loss, giou_loss, iou_and_giou


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.05 + 0.9 * torch.rand(count, 4, generator=generator, dtype=torch.float64)


def test_half_overlapping_unit_boxes():
    box, other = torch.tensor([0.5, 0.5, 1.0, 1.0]), torch.tensor([1.0, 0.5, 1.0, 1.0])
    iou, giou = iou_and_giou(box, other)
    assert iou.item() == pytest.approx(1 / 3)
    assert giou.item() == pytest.approx(1 / 3)  # the hull is the union
    assert giou_loss(box, other).item() == pytest.approx(2 / 3)
    assert box_l1_loss(box, other).item() == pytest.approx(0.5)


def test_boxes_apart():
    iou, giou = iou_and_giou(torch.tensor([0.5, 0.5, 1.0, 1.0]), torch.tensor([3.5, 0.5, 1.0, 1.0]))
    assert iou.item() == 0
    assert giou.item() == pytest.approx(-0.5)  # hull 4, union 2


def test_all_pairs_agree_with_torchvision():
    boxes, others = random_boxes(20, seed=0), random_boxes(30, seed=1)
    expected = generalized_box_iou(box_convert(boxes, "cxcywh", "xyxy"), box_convert(others, "cxcywh", "xyxy"))
    torch.testing.assert_close(iou_and_giou(boxes[:, None], others)[1], expected)


def test_identical_boxes_overlap_exactly():
    boxes = random_boxes(1000, seed=2).float()
    iou, giou = iou_and_giou(boxes, boxes)
    assert torch.equal(iou, torch.ones(1000))
    assert torch.equal(giou, torch.ones(1000))


def test_tiny_boxes_keep_their_overlap():
    """Two boxes of one thousandth of the image, half a width apart: no epsilon may blur them."""
    box = torch.tensor([0.5, 0.5, 1e-3, 1e-3], dtype=torch.float64)
    other = torch.tensor([0.5005, 0.5, 1e-3, 1e-3], dtype=torch.float64)
    assert iou_and_giou(box, other)[0].item() == pytest.approx(1 / 3, rel=1e-9)


def test_a_negative_size_counts_as_zero():
    box, other = torch.tensor([0.5, 0.5, -0.2, 0.4]), torch.tensor([0.5, 0.5, 0.2, 0.4])
    iou, giou = iou_and_giou(box, other)
    assert (iou.item(), giou.item()) == (0, 0)


def test_boxes_without_area_have_no_overlap_and_a_finite_gradient():
    boxes = torch.zeros(3, 4, requires_grad=True)
    iou, giou = iou_and_giou(boxes, torch.zeros(3, 4))
    (iou + giou).sum().backward()
    assert torch.equal(iou, torch.zeros(3))
    assert torch.equal(giou, torch.zeros(3))
    assert boxes.grad is not None
    assert boxes.grad.isfinite().all()


def test_nan_stays_nan():
    iou, giou = iou_and_giou(torch.tensor([float("nan"), 0.5, 0.1, 0.1]), torch.tensor([0.5, 0.5, 0.1, 0.1]))
    assert iou.isnan()
    assert giou.isnan()


def test_gradients_are_those_of_finite_differences():
    boxes = random_boxes(6, seed=3).requires_grad_()
    others = random_boxes(6, seed=4)
    assert torch.autograd.gradcheck(lambda boxes: iou_and_giou(boxes, others), boxes)
