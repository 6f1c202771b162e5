from __future__ import annotations

import pytest
import torch

from detectors.decoders.denoising import contrastive_denoising

CLASSES = 80


# The authors' code (RT-DETRv4 commit df44122) on `targets_with(2, 1)`, seed 5, on the CPU: the first image's labels and
# its first three boxes.
AUTHORS_LABELS = [57, 60, 57, 3, 57, 7, 32, 3]
AUTHORS_BOXES = [
    [-0.42965, 0.31785, -2.45786, -0.35039],
    [0.04077, 0.6675, -2.13075, -1.84559],
    [-0.87941, 1.02948, -1.21206, -0.86707],
]


def targets_with(*counts: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    targets = []
    for count in counts:
        size = 0.1 + 0.2 * torch.rand(count, 2, generator=generator)
        centre = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        targets.append({"labels": labels, "boxes": torch.cat([centre, size], dim=1)})
    return targets


def keep_labels(labels: torch.Tensor) -> torch.Tensor:
    return labels[..., None].float()


def test_nothing_to_denoise():
    assert contrastive_denoising(targets_with(0, 0), CLASSES, 10, keep_labels) is None
    assert contrastive_denoising(targets_with(2), CLASSES, 10, keep_labels, num_denoising=0) is None


def test_shapes_and_meta():
    group = contrastive_denoising(targets_with(3, 0, 2), CLASSES, 10, keep_labels, num_denoising=7)
    assert group is not None
    assert group.content.shape == (3, 12, 1)  # 2 groups · (3 positive + 3 negative)
    assert group.boxes_unactivated.shape == (3, 12, 4)
    assert group.attention_mask.shape == (22, 22)
    assert group.meta["dn_num_group"] == 2
    assert group.meta["dn_num_split"] == [12, 10]
    assert [index.tolist() for index in group.meta["dn_positive_idx"]] == [[0, 1, 2, 6, 7, 8], [], [0, 1, 6, 7]]


def test_at_least_one_group():
    group = contrastive_denoising(targets_with(9), CLASSES, 10, keep_labels, num_denoising=4)
    assert group is not None
    assert group.meta["dn_num_group"] == 1
    assert group.meta["dn_num_split"] == [18, 10]


def test_attention_mask():
    group = contrastive_denoising(targets_with(1), CLASSES, 2, keep_labels, num_denoising=2)
    assert group is not None
    expected = torch.tensor(
        [  # two groups of two, then two matching queries; 1 = must not see
            [0, 0, 1, 1, 0, 0],
            [0, 0, 1, 1, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0, 0],
        ]
    )
    assert torch.equal(group.attention_mask, expected.bool())


def test_without_noise_the_objects_come_back():
    targets = targets_with(3, 1)
    group = contrastive_denoising(targets, CLASSES, 10, keep_labels, num_denoising=6, label_noise=0, box_noise=0)
    assert group is not None
    for image, target in enumerate(targets):
        positive = group.meta["dn_positive_idx"][image]
        torch.testing.assert_close(group.boxes_unactivated[image, positive].sigmoid(), target["boxes"].tile(2, 1))
        assert torch.equal(group.content[image, positive, 0], target["labels"].tile(2).float())
    assert (group.content[1, [1, 2, 4, 5], 0] == CLASSES).all()  # padding


def test_padding_keeps_its_label_under_noise():
    torch.manual_seed(0)
    group = contrastive_denoising(targets_with(4, 1), CLASSES, 10, keep_labels, num_denoising=400, label_noise=2.0)
    assert group is not None
    labels = group.content[1, :, 0].view(-1, 4)
    assert (labels[:, 1:] == CLASSES).all()
    assert (labels[:, 0] < CLASSES).all()


def test_noise_statistics():
    """Positives move each edge by up to half the size, negatives by half to one; a quarter of the labels is redrawn."""
    torch.manual_seed(0)
    box = torch.tensor([[0.5, 0.5, 0.2, 0.1]])
    target = {"labels": torch.tensor([7]), "boxes": box}
    group = contrastive_denoising([target], CLASSES, 10, keep_labels, num_denoising=10_000)
    assert group is not None
    centre, size = group.boxes_unactivated[0].sigmoid().chunk(2, dim=-1)
    edges = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
    shift = (edges - torch.tensor([0.4, 0.45, 0.6, 0.55])) / torch.tensor([0.1, 0.05, 0.1, 0.05])
    positive, negative = shift.view(-1, 2, 4).unbind(1)
    assert positive.abs().max() < 1 + 1e-4
    assert positive.abs().mean().item() == pytest.approx(0.5, abs=0.01)
    assert positive.mean().item() == pytest.approx(0, abs=0.02)
    # Edges that crossed are swapped; sums of opposite edges stay what they were.
    total = (negative[:, :2] + negative[:, 2:]).abs()
    assert total.max() < 4
    assert total.mean().item() == pytest.approx(1.5 + 1 / 6, abs=0.03)
    assert (size < 1e-3).float().mean() < 0.05  # their size does not become nothing
    redrawn = (group.content[0, :, 0] != 7).float().mean().item()
    assert redrawn == pytest.approx(0.25 * 79 / 80, abs=0.01)


def test_random_numbers_come_in_a_fixed_order():
    """One seed gives the draw of the authors' code."""
    torch.manual_seed(5)
    group = contrastive_denoising(targets_with(2, 1), CLASSES, 10, keep_labels, num_denoising=4)
    assert group is not None
    assert group.content[0, :, 0].tolist() == AUTHORS_LABELS
    torch.testing.assert_close(group.boxes_unactivated[0, :3], torch.tensor(AUTHORS_BOXES), atol=2e-5, rtol=0)


def test_targets_are_left_alone():
    targets = targets_with(2, 1)
    copies = [{key: value.clone() for key, value in target.items()} for target in targets]
    contrastive_denoising(targets, CLASSES, 10, keep_labels)
    for target, copy in zip(targets, copies, strict=True):
        assert all(torch.equal(target[key], copy[key]) for key in target)
