from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from detectors.ablation import linear_probe
from detectors.ablation.linear_probe import STRENGTHS, TOLERANCE, chance, choose, cross_validate, fit
from vfmdistill.errors import DistillError, InputError

DRAWS = np.random.default_rng(0)
LABELS = DRAWS.integers(0, 4, 120)
NOISY = DRAWS.normal(size=(120, 10)) + 1.5 * np.eye(4, 10)[LABELS]


@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_gradient_is_zero_at_the_optimum(strength: float) -> None:
    found = fit(NOISY, LABELS, 4, strength)
    weight, bias = (torch.tensor(value, requires_grad=True) for value in (found.weight, found.bias))
    inputs = torch.tensor((NOISY - NOISY.mean(0)) / NOISY.std(0))
    loss = F.cross_entropy(inputs @ weight + bias, torch.tensor(LABELS)) + strength / 2 * weight.square().sum()
    loss.backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) <= 1.01 * TOLERANCE
    # No step from there leads down.
    for scale in (0.99, 1.01):
        other = F.cross_entropy(inputs @ weight * scale + bias, torch.tensor(LABELS))
        assert other + strength / 2 * (weight * scale).square().sum() > loss


@pytest.mark.parametrize("strength", [1e-5, 0.01, 1.0])
def test_one_feature_and_two_classes_follow_a_known_equation(strength: float) -> None:
    # Nine of ten samples on each side are of that side's class: with d the difference of the logits at x = 1,
    # sigmoid(d) − 0.9 + strength · d / 2 = 0.
    features = np.repeat([[1.0], [-1.0]], 10, axis=0)
    labels = np.array([1] * 9 + [0] + [0] * 9 + [1])
    found = fit(features, labels, 2, strength)
    logits = found.logits(np.ones((1, 1)))[0]
    difference = logits[1] - logits[0]
    assert 1 / (1 + np.exp(-difference)) - 0.9 + strength * difference / 2 == pytest.approx(0, abs=1e-5)
    assert found.weight.sum() == pytest.approx(0, abs=1e-6)
    assert found.accuracy(features, labels) == 0.9


def test_features_that_say_nothing_leave_the_frequencies() -> None:
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    found = fit(np.full((10, 3), 0.1), labels, 3, 0.01)
    assert np.abs(found.weight).max() == 0
    likely = np.exp(found.bias) / np.exp(found.bias).sum()
    assert likely == pytest.approx([0.5, 0.3, 0.2], abs=1e-5)
    assert found.accuracy(np.full((1, 3), 7.0), np.array([0])) == 1  # nor does another constant matter


def test_what_a_plane_separates_is_told_apart_and_what_none_does_is_not() -> None:
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert fit(corners, np.array([0, 0, 1, 1]), 2, 1e-3).accuracy(corners, np.array([0, 0, 1, 1])) == 1
    crossed = fit(corners, np.array([0, 1, 1, 0]), 2, 1e-3)
    assert np.abs(crossed.logits(corners)).max() < 1e-4  # by symmetry


def test_scale_and_offset_of_features_do_not_matter() -> None:
    scale, offset = np.geomspace(1e-6, 1e6, 10), np.linspace(-3, 3, 10)
    plain, scaled = fit(NOISY, LABELS, 4, 0.01), fit(NOISY * scale + offset, LABELS, 4, 0.01)
    assert scaled.logits(NOISY * scale + offset) == pytest.approx(plain.logits(NOISY), abs=1e-4)


def test_where_the_search_begins_does_not_matter() -> None:
    plain = fit(NOISY, LABELS, 4, 0.01)
    warm = fit(NOISY, LABELS, 4, 0.01, fit(NOISY, LABELS, 4, 1.0))
    weight = pytest.approx(plain.weight, abs=1e-4)
    assert warm.weight == weight
    assert fit(NOISY, LABELS, 4, 1.0).weight != weight


def test_stronger_l2_makes_smaller_weights() -> None:
    sizes = [float(np.abs(fit(NOISY, LABELS, 4, strength).weight).sum()) for strength in STRENGTHS]
    assert sizes == sorted(sizes)
    assert tuple(sorted(STRENGTHS, reverse=True)) == STRENGTHS


def test_samples_of_a_group_are_held_out_together() -> None:
    # Every group has a place and a class of its own, drawn at random: only who has seen it knows its class.
    draws = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 4)
    features = np.eye(40)[groups] + 0.01 * draws.normal(size=(160, 40))
    labels = draws.integers(0, 2, 40)[groups]
    apart = cross_validate(features, labels, np.arange(160), 2, strengths=[1e-3])
    together = cross_validate(features, labels, groups, 2, strengths=[1e-3])
    assert apart[1e-3] > 0.9
    assert together[1e-3] < 0.7


def test_cross_validation_counts_every_sample_once_and_can_be_repeated() -> None:
    held_out = cross_validate(NOISY, LABELS, np.arange(120) // 2, 4)
    assert list(held_out) == list(STRENGTHS)
    assert all(120 * share == pytest.approx(round(120 * share)) for share in held_out.values())
    assert held_out == cross_validate(NOISY, LABELS, np.arange(120) // 2, 4)
    assert held_out != cross_validate(NOISY, LABELS, np.arange(120) // 2, 4, seed=1)
    assert max(held_out.values()) > 0.5  # one in four by chance


def test_of_equal_strengths_the_strongest_is_chosen() -> None:
    assert choose({10.0: 0.5, 1.0: 0.7, 0.1: 0.7, 0.01: 0.6}) == 1.0
    assert choose({0.1: 0.7, 1.0: 0.7}) == 1.0


def test_chance_is_guessing_as_often_as_in_training() -> None:
    assert chance(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]), 3) == pytest.approx((0.75 + 3 * 0.25) / 4)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.ones((3, 2)), np.array([0, 1]), r"shape \(3, 2\) with labels of shape \(2,\)"),
        (np.ones((2, 2)), np.array([0, 2]), "labels from 0 to 2; expected 0 to 1"),
        (np.array([[1.0], [np.nan]]), np.array([0, 1]), "not all finite"),
        (np.ones((0, 2)), np.zeros(0, dtype=np.int64), r"expected \(M, C\) and \(M,\)"),
    ],
)
def test_what_cannot_be_fitted_is_refused(features: Any, labels: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit(features, labels, 2, 1.0)


def test_one_image_cannot_be_held_out_of_itself() -> None:
    with pytest.raises(InputError, match="1 images; expected at least 2"):
        cross_validate(NOISY, LABELS, np.zeros(120, dtype=np.int64), 4)


def test_a_search_that_ends_too_early_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    search = linear_probe.minimize

    def impatient(*arguments: Any, options: dict[str, Any], **others: Any) -> Any:
        return search(*arguments, options={**options, "maxiter": 2}, **others)

    monkeypatch.setattr(linear_probe, "minimize", impatient)
    with pytest.raises(DistillError, match=r"ended with a gradient of .* at L2 0.01"):
        fit(NOISY, LABELS, 4, 0.01)
