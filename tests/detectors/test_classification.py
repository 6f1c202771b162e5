from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from detectors.losses.classification import focal_loss, matchability_aware_loss, varifocal_loss

# One image, two queries, two classes, every logit 0 (p = 0.5): query 0 is matched with class 1 at an IoU of 0.81.
LOGITS = torch.zeros(1, 2, 2, dtype=torch.float64)
LABELS = torch.tensor([[1, 2]])
QUALITY = torch.tensor([[0.81, 0.0]], dtype=torch.float64)
LOG2 = math.log(2)  # the cross-entropy of p = 0.5 with any target


def test_varifocal_by_hand():
    loss = varifocal_loss(LOGITS, LABELS, QUALITY)
    negative = 0.75 * 0.5**2 * LOG2
    assert loss.flatten().tolist() == pytest.approx([negative, 0.81 * LOG2, negative, negative])


def test_matchability_aware_by_hand():
    loss = matchability_aware_loss(LOGITS, LABELS, QUALITY)
    negative = 0.5**1.5 * LOG2
    assert loss.flatten().tolist() == pytest.approx([negative, LOG2, negative, negative])
    confident = matchability_aware_loss(LOGITS + 2, LABELS, QUALITY)[0, 0, 1]
    target, p = 0.81**1.5, 1 / (1 + math.exp(-2))
    assert confident.item() == pytest.approx(-(target * math.log(p) + (1 - target) * math.log(1 - p)))


def test_focal_by_hand():
    loss = focal_loss(LOGITS, LABELS, QUALITY)
    negative = 0.75 * 0.5**2 * LOG2
    assert loss.flatten().tolist() == pytest.approx([negative, 0.25 * 0.5**2 * LOG2, negative, negative])


def test_a_match_without_overlap_still_teaches_in_mal_and_not_in_vfl():
    logits = torch.zeros(1, 1, 2, requires_grad=True)
    arguments = logits, torch.tensor([[0]]), torch.zeros(1, 1)
    assert varifocal_loss(*arguments)[0, 0, 0].item() == 0
    assert matchability_aware_loss(*arguments)[0, 0, 0].item() == pytest.approx(LOG2)


@pytest.mark.parametrize("loss", [varifocal_loss, matchability_aware_loss])
def test_no_gradient_through_weights_and_quality(loss):
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    labels = torch.tensor([[0, 4, 2], [4, 4, 3]])
    quality = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    loss(logits, labels, quality).sum().backward()
    assert quality.grad is None
    assert logits.grad is not None
    # d BCE / d logit = weight · (p − target), with the weight held fixed
    positive = F.one_hot(labels, 5)[..., :4].bool()
    p, gamma = logits.detach().sigmoid(), 2.0 if loss is varifocal_loss else 1.5
    target = positive * quality.detach()[..., None] ** (1.0 if loss is varifocal_loss else gamma)
    weight = torch.where(positive, target, 0.75 * p**gamma) if loss is varifocal_loss else p**gamma
    if loss is matchability_aware_loss:
        weight = weight.masked_fill(positive, 1.0)
    torch.testing.assert_close(logits.grad, weight * (p - target))


@pytest.mark.parametrize("loss", [varifocal_loss, matchability_aware_loss, focal_loss])
def test_layers_are_independent(loss):
    """Stacked layers give what each gives alone."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 5, 4, generator=generator)
    labels = torch.randint(0, 5, (3, 2, 5), generator=generator)
    quality = torch.rand(3, 2, 5, generator=generator)
    alone = torch.stack([loss(*layer) for layer in zip(logits, labels, quality, strict=True)])
    torch.testing.assert_close(loss(logits, labels, quality), alone)
