from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from detectors.decoders.denoising import contrastive_denoising

CLASSES = 80


# The authors' code (RT-DETRv4 commit df44122) on `targets_with(2, 1)`, two groups, seed 5, on the CPU: the labels of
# both images and the boxes of the first. RT-DETR's first version (commit 068dfde) differs where it is noted.
AUTHORS_LABELS = [[57, 60, 57, 3, 57, 7, 32, 3], [44, 80, 38, 80, 63, 80, 38, 80]]
AUTHORS_BOXES = [
    [0.3942097425, 0.5788011551, 0.0788660049, 0.4132874310],
    [0.5101903677, 0.6609422565, 0.1061442271, 0.1363919377],
    [0.2932996154, 0.7368144989, 0.2293366492, 0.2958639264],
    [0.4897575378, 0.5526748896, 0.2854659855, 0.0947339609],
    [0.3855883479, 0.4685900509, 0.1281392872, 0.2073621005],
    [0.5211059451, 0.6903061867, 0.1754840761, 0.1365566254],
    [0.4132145047, 0.3892971277, 0.1492592394, 0.2494041920],  # first version: width 1e-5
    [0.5802838802, 0.6730192900, 0.1413346976, 0.0916495249],  # first version: height 1e-5
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


# Four objects: in the middle, at two borders of the image, tiny, and nearly as large as the image.
OBJECTS = {
    "middle": (0.5, 0.5, 0.2, 0.1),
    "border": (0.1, 0.88, 0.2, 0.24),
    "tiny": (0.3, 0.6, 0.004, 0.006),
    "large": (0.5, 0.45, 0.9, 0.84),
}
LABELS = torch.tensor([0, 7, 40, 79])
DRAWS = 10_000

# What the authors' code (RT-DETRv4 commit df44122) makes of them in a million draws, on the CPU. Mean, deviation,
# lowest and highest change of centre x, centre y, width and height, in units of width and height; then the share of
# left, upper, right and lower edges on the image's border. Positives first, negatives second.
AUTHORS = {
    "middle": (
        (
            (0.00018, 0.00013, -0.00024, 0.00007), (0.20417, 0.20405, 0.40826, 0.40824),
            (-0.49971, -0.49921, -0.99945, -0.99879), (0.49975, 0.49978, 0.99782, 0.99889),
            (0, 0, 0, 0),
        ),
        (
            (0.00044, 0.00028, 0.24876, 0.25043), (0.54036, 0.54041, 0.77676, 0.77700),
            (-0.99876, -0.99969, -0.99959, -0.99804), (0.99898, 0.99966, 1.99888, 1.99896),
            (0, 0, 0, 0),
        ),
    ),
    "border": (
        (
            (0.06246, -0.06265, -0.12516, -0.12490), (0.16543, 0.16521, 0.33093, 0.33053),
            (-0.25, -0.49958, -0.99902, -0.99926), (0.49949, 0.25, 0.5, 0.5),
            (0.49996, 0, 0, 0.49972),
        ),
        (
            (0.18736, -0.18834, -0.12544, -0.12414), (0.42868, 0.42852, 0.59949, 0.59969),
            (-0.49995, -0.99972, -0.99995, -0.99996), (0.99978, 0.49996, 1.0, 1.0),
            (0.50008, 0.00005, 0.00004, 0.49983),
        ),
    ),
    "tiny": (
        (
            (0.00014, 0.00014, -0.00053, 0.00033), (0.20388, 0.20421, 0.40880, 0.40771),
            (-0.49978, -0.49893, -0.9975, -0.99833), (0.49940, 0.49973, 0.99813, 0.99736),
            (0, 0, 0, 0),
        ),
        (
            (-0.00011, 0.00033, 0.24912, 0.25027), (0.54054, 0.53998, 0.77647, 0.77726),
            (-0.99930, -0.99931, -0.9975, -0.99833), (0.99950, 0.99963, 1.99861, 1.99811),
            (0, 0, 0, 0),
        ),
    ),
    "large": (
        (
            (0.00003, 0.02411, -0.19779, -0.16728), (0.12922, 0.13984, 0.25845, 0.27991),
            (-0.27778, -0.26786, -0.99884, -0.99826), (0.27778, 0.32738, 0.11111, 0.19047),
            (0.44433, 0.46488, 0.44517, 0.34545),
        ),
        (
            (0.00026, 0.02973, -0.44424, -0.40500), (0.29384, 0.30818, 0.36070, 0.38012),
            (-0.52778, -0.51786, -0.99887, -0.99955), (0.52778, 0.57738, 0.11111, 0.19047),
            (0.50040, 0.49964, 0.50068, 0.49992),
        ),
    ),
}  # fmt: skip
# RT-DETR's first version (commit 068dfde) differs in the width and height of negatives whose edges passed each other:
# mean and deviation of the change, and the share of such sizes, which are the smallest possible.
FIRST_VERSION = {
    "middle": ((0.12382, 0.12574), (0.90934, 0.90953), (0.25003, 0.24944)),
    "border": ((-0.25024, -0.24877), (0.69954, 0.69981), (0.24990, 0.24945)),
    "tiny": ((0.12479, 0.12568), (0.90838, 0.90953), (0.24987, 0.25002)),
    "large": ((-0.56886, -0.52995), (0.42477, 0.45243), (0.24935, 0.24997)),
}
AUTHORS_RELABELLED = 0.24709  # share of all copies that end with another label; all other labels equally often


def noisy_copies(draw: Callable[..., Any], draws: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes (draws, 2, 4, 4) and labels (draws, 2, 4): positives and negatives of the four objects."""
    targets = [
        {"labels": LABELS, "boxes": torch.tensor(list(OBJECTS.values()))},
        {"labels": torch.tensor([3]), "boxes": torch.tensor([[0.4, 0.4, 0.3, 0.3]])},  # padded by three
    ]
    boxes, labels = [], []
    while sum(len(part) for part in boxes) < draws:
        for groups in (1, 9, 90):
            noisy = draw(targets, CLASSES, 10, keep_labels, num_denoising=4 * groups + 3, **options)
            boxes.append(noisy.boxes_unactivated[0].double().sigmoid().view(groups, 2, 4, 4))
            labels.append(noisy.content[0].view(groups, 2, 4))
    return torch.cat(boxes), torch.cat(labels)


def changes(boxes: torch.Tensor, name: str) -> torch.Tensor:
    box = torch.tensor(OBJECTS[name], dtype=torch.float64)
    return (boxes - box) / box[2:].tile(2)


def on_border(boxes: torch.Tensor) -> torch.Tensor:
    edges = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
    return (edges < 2e-5) | (edges > 1 - 2e-5)


def smallest(boxes: torch.Tensor) -> torch.Tensor:
    return boxes[:, 2:] < 1.1e-5


def assert_within_chance(values: torch.Tensor, mean: Sequence[float], deviation: Sequence[float] | None = None) -> None:
    """Compare mean and deviation of samples (n, k) with the expected; four standard errors are allowed."""
    values, wanted = values.double(), torch.tensor(mean, dtype=torch.float64)
    root = len(values) ** 0.5
    if deviation is None:  # shares
        assert ((values.mean(0) - wanted).abs() <= 4 * (wanted * (1 - wanted)).sqrt() / root).all()
        return
    spread = torch.tensor(deviation, dtype=torch.float64)
    assert ((values.mean(0) - wanted).abs() <= 4 * spread / root).all()
    fourth = (values - values.mean(0)).pow(4).mean(0)
    error = (fourth - spread**4).sqrt() / (2 * spread * root)
    assert ((values.std(0) - spread).abs() <= 4 * error).all()


@pytest.fixture(scope="module", params=[True, False], ids=["flip", "no_flip"])
def drawn(request: pytest.FixtureRequest) -> tuple[bool, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return request.param, *noisy_copies(contrastive_denoising, DRAWS, flip=request.param)


@pytest.mark.parametrize("index", range(4), ids=OBJECTS)
@pytest.mark.parametrize("negative", [0, 1], ids=["positive", "negative"])
def test_boxes_are_distributed_as_the_authors(
    drawn: tuple[bool, torch.Tensor, torch.Tensor], index: int, negative: int
) -> None:
    flip, boxes = drawn[0], drawn[1][:, negative, index]
    name = list(OBJECTS)[index]
    change = changes(boxes, name)
    mean, deviation, lowest, highest, border = AUTHORS[name][negative]
    if negative and not flip:
        size_mean, size_deviation, passed = FIRST_VERSION[name]
        mean, deviation = mean[:2] + size_mean, deviation[:2] + size_deviation
        assert_within_chance(smallest(boxes), passed)
    else:
        assert smallest(boxes).double().mean() < 1e-3  # by chance only
    assert_within_chance(change, mean, deviation)
    assert_within_chance(on_border(boxes), border)

    low, high = torch.tensor(lowest), torch.tensor(highest)
    reach = high - low
    assert (change.amin(0) >= low - 0.002 * reach).all()
    assert (change.amin(0) <= low + 0.05 * reach).all()
    assert (change.amax(0) <= high + 0.002 * reach).all()
    assert (change.amax(0) >= high - 0.05 * reach).all()


def test_labels_are_distributed_as_the_authors(drawn: tuple[bool, torch.Tensor, torch.Tensor]) -> None:
    labels = drawn[2]
    changed = labels != LABELS
    assert_within_chance(changed.flatten(0, 1), [AUTHORS_RELABELLED] * 4)
    for index, label in enumerate(LABELS.tolist()):
        new = labels[..., index][changed[..., index]].long()
        counts = torch.bincount(new, minlength=CLASSES).double()
        assert len(counts) == CLASSES
        counts = counts[torch.arange(CLASSES) != label]
        expected = counts.mean()
        chi_squared = ((counts - expected) ** 2 / expected).sum().item()
        freedom = CLASSES - 2
        assert abs(chi_squared - freedom) <= 4 * (2 * freedom) ** 0.5


def test_flip_changes_boxes_whose_edges_passed_each_other_alone() -> None:
    torch.manual_seed(0)
    flipped, _ = noisy_copies(contrastive_denoising, 100)
    torch.manual_seed(0)
    kept, _ = noisy_copies(contrastive_denoising, 100, flip=False)
    same = (flipped == kept).all(dim=-1)
    passed = (kept[..., 2:] < 1.1e-5).any(dim=-1)
    assert torch.equal(same, ~passed)
    assert not passed[:, 0].any()
    assert 0.3 < passed[:, 1].double().mean() < 0.6  # one of two dimensions, in a quarter of the cases each


@pytest.mark.parametrize("flip", [True, False])
def test_one_seed_gives_the_draw_of_the_authors(flip: bool) -> None:
    torch.manual_seed(5)
    group = contrastive_denoising(targets_with(2, 1), CLASSES, 10, keep_labels, num_denoising=4, flip=flip)
    assert group is not None
    assert group.content[..., 0].tolist() == AUTHORS_LABELS
    expected = torch.tensor(AUTHORS_BOXES)
    if not flip:
        expected[6, 2] = expected[7, 3] = 1e-5
    torch.testing.assert_close(group.boxes_unactivated[0].sigmoid(), expected, atol=1e-7, rtol=0)
    assert group.meta["dn_num_split"] == [8, 10]


def test_targets_are_left_alone():
    targets = targets_with(2, 1)
    copies = [{key: value.clone() for key, value in target.items()} for target in targets]
    contrastive_denoising(targets, CLASSES, 10, keep_labels)
    for target, copy in zip(targets, copies, strict=True):
        assert all(torch.equal(target[key], copy[key]) for key in target)
