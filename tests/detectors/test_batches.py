from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from support.drawn_samples import DrawnSamples
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors

from detectors.data import batches as module
from detectors.data.augmentation import Augmentation
from detectors.data.batches import Batch, Batches, batch_sizes
from detectors.data.coco import Sample
from detectors.data.transforms import train_transform
from vfmdistill.errors import InputError

DENSE = Augmentation(strong=True, mosaic=0.5, mixup=0.5, multi_scale=1)
MIXED = Augmentation(mixup=1.0)
DATA = DrawnSamples(21)


def make(augmentation: Augmentation = DENSE, **settings: Any) -> Batches:
    defaults: dict[str, Any] = {"data": DATA, "size": (64, 96), "batch_size": 8, "seed": 5, "epoch": 2}
    return Batches(augmentation=augmentation, **{**defaults, **settings})


def assert_equal(one: Batch, other: Batch) -> None:
    assert torch.equal(one[0], other[0])
    assert len(one[1]) == len(other[1])
    for mine, yours in zip(one[1], other[1], strict=True):
        assert mine.keys() == yours.keys()
        assert all(torch.equal(mine[key], yours[key]) for key in mine)


class Flat:
    """Pictures of one brightness each, with one box; image i of n has the brightness 255 × i / (n - 1)."""

    def __init__(self, images: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images

    def load(self, index: int) -> Sample:
        pixels = torch.full((3, 32, 32), round(255 * index / (self.images - 1)), dtype=torch.uint8)
        boxes = tv_tensors.BoundingBoxes(
            torch.tensor([[8.0, 8.0, 24.0, 24.0]]), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(32, 32)
        )
        target = {"labels": torch.tensor([index]), "boxes": boxes, "image_id": torch.tensor(index)}
        return tv_tensors.Image(pixels), target


def test_shapes_and_types() -> None:
    batches = make(Augmentation())
    assert len(batches) == 2
    images, targets = batches[0]
    assert images.shape == (8, 3, 64, 96)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert len(targets) == 8
    for target in targets:
        assert target["boxes"].shape == (len(target["labels"]), 4)
        assert type(target["boxes"]) is Tensor


def test_an_epoch_takes_every_image_at_most_once_in_another_order_each_time() -> None:
    orders = []
    for epoch in range(3):
        batches = make(Augmentation(), epoch=epoch)
        orders.append([int(target["image_id"]) for number in range(len(batches)) for target in batches[number][1]])
        assert len(set(orders[-1])) == 16
    assert orders[0] != orders[1] != orders[2]
    assert {image for order in orders for image in order} > set(orders[0])
    other = make(Augmentation(), epoch=0, seed=6)
    assert [int(target["image_id"]) for target in other[0][1]] != orders[0][:8]


@pytest.mark.parametrize(("world", "parts"), [(2, 1), (1, 2), (2, 2), (4, 2), (8, 1)])
def test_processes_and_parts_together_have_the_batch_of_one(world: int, parts: int) -> None:
    whole = make()
    split = [make(rank=rank, world=world, parts=parts) for rank in range(world)]
    for step in range(len(whole)):
        pieces = [batches[step * parts + part] for batches in split for part in range(parts)]
        assert len(split[0]) == len(whole) * parts
        assert_equal(
            whole[step],
            (torch.cat([images for images, _ in pieces]), [target for _, targets in pieces for target in targets]),
        )


def test_a_batch_depends_on_nothing_but_its_number() -> None:
    expected = [make()[number] for number in range(2)]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    batches = make()
    found = [batches[number] for number in (1, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal(expected[0], found[1])
    assert_equal(expected[1], found[0])


def test_without_augmentation_images_are_flipped_and_resized() -> None:
    batches = make(Augmentation())
    for index in range(1, 5):
        image, target = batches.sample(index)
        versions = []
        for seed in range(12):
            torch.manual_seed(seed)
            versions.append(train_transform((64, 96), augment=False)(*DATA.load(index)))
        same = [made for pixels, made in versions if torch.equal(pixels, image)]
        assert 0 < len(same) < 12
        assert torch.equal(same[0]["boxes"], target["boxes"])


@pytest.mark.parametrize(("size", "tile"), [((64, 96), 32), ((160, 160), 80)])
def test_a_mosaic_has_tiles_of_half_the_size_and_partners_from_all_images(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], tile: int
) -> None:
    partners: Counter[int] = Counter()

    def watched(samples: list[Sample], tile_side: int) -> Sample:
        ids = [int(target["image_id"]) for _, target in samples]
        assert ids[0] == index
        assert tile_side == tile
        partners.update(ids[1:])
        return samples[0]

    monkeypatch.setattr(module, "mosaic", watched)
    for epoch in range(20):
        batches = make(Augmentation(mosaic=1.0), size=size, epoch=epoch)
        for index in range(len(DATA)):
            batches.sample(index)
    # 1260 partners of 21 images, 60 each if all are as likely; 5 standard deviations are 38
    assert len(partners) == len(DATA)
    assert all(22 <= count <= 98 for count in partners.values())


def test_mosaics_are_neither_zoomed_out_nor_cropped_but_distorted() -> None:
    def names(transform: Any) -> list[str]:
        return [type(step).__name__ for step in transform.transforms]

    strong, of_mosaics = names(train_transform((64, 64))), names(train_transform((64, 64), mosaic=True))
    assert [name for name in strong if name not in of_mosaics] == ["RandomZoomOut", "RandomApply"]
    assert [name for name in of_mosaics if name not in names(train_transform((64, 64), augment=False))] == ["OnPillow"]


def test_mixup_blends_neighbours_of_the_whole_batch() -> None:
    data = Flat(9)
    settings: dict[str, Any] = {"data": data, "size": (32, 32), "batch_size": 4}
    plain, mixed = make(Augmentation(), **settings), make(MIXED, **settings)
    assert len(mixed) == 2
    for number in range(len(mixed)):
        (before, _), (images, targets) = plain[number], mixed[number]
        own, neighbour = before[:, 0, 0, 0], before.roll(1, 0)[:, 0, 0, 0]
        ratios = (images[:, 0, 0, 0] - neighbour) / (own - neighbour)
        torch.testing.assert_close(ratios, ratios[:1].expand(4), rtol=0, atol=1e-4)
        assert 0.45 <= ratios[0] <= 0.55
        labels = (own * 8).round().long()
        assert [target["labels"].tolist() for target in targets] == torch.stack(
            [labels, labels.roll(1)], dim=1
        ).tolist()
        assert all(len(target["boxes"]) == 2 for target in targets)


def test_a_lone_image_has_no_neighbour() -> None:
    batches = make(MIXED, data=Flat(3), size=(32, 32), batch_size=1)
    assert [len(batches[number][1][0]["boxes"]) for number in range(3)] == [1, 1, 1]


def test_mixup_has_the_statistics_of_the_authors_code(monkeypatch: pytest.MonkeyPatch) -> None:
    # RT-DETRv4 commit df44122: 20,000 batches of four images with 0, 1, 2 and 3 boxes, as mean and standard error.
    expected = {"share": (0.5031, 0.0035), "ratio": (0.50015, 0.00029), "boxes": (2.2546, 0.0053)}
    spread = 0.02880  # standard deviation of the ratio

    def tiny(batches: Batches, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        target = {
            "labels": torch.full((index,), index),
            "boxes": torch.zeros(index, 4),
            "image_id": torch.tensor(index),
        }
        return torch.full((3, 2, 2), index / 4), target

    monkeypatch.setattr(Batches, "sample", tiny)
    found: dict[str, list[float]] = {"share": [], "ratio": [], "boxes": []}
    for epoch in range(2000):
        images, targets = make(Augmentation(mixup=0.5), data=Flat(4), size=(32, 32), batch_size=4, epoch=epoch)[0]
        boxes = [len(target["boxes"]) for target in targets]
        is_mixed = sum(boxes) > 6
        found["boxes"].append(sum(boxes) / 4)
        found["share"].append(float(is_mixed))
        if is_mixed:
            own, neighbour = int(targets[0]["image_id"]) / 4, int(targets[-1]["image_id"]) / 4
            found["ratio"].append((images[0, 0, 0, 0].item() - neighbour) / (own - neighbour))
    for name, (mean, error) in expected.items():
        values = torch.tensor(found[name], dtype=torch.float64)
        own_error = values.std().item() / math.sqrt(len(values))
        assert abs(values.mean().item() - mean) < 3.5 * math.hypot(error, own_error), name
    ratios = torch.tensor(found["ratio"])
    assert 0.4499 < ratios.min() < ratios.max() < 0.5501
    assert abs(ratios.std().item() / spread - 1) < 3.5 / math.sqrt(2 * len(ratios))


def test_the_sizes_of_a_batch() -> None:
    # The published models: 480 to 800 in steps of 32, and 640 so often.
    around = [480, 512, 544, 576, 608, 672, 704, 736, 768, 800]
    for repeat in (3, 20):
        expected = [(side, side) for side in [*around, *[640] * repeat]]
        assert sorted(batch_sizes((640, 640), repeat)) == sorted(expected)
    assert Counter(batch_sizes((480, 640), 2)) == Counter(
        {(352, 480): 1, (384, 512): 1, (416, 544): 1, (448, 576): 1, (448, 608): 1, (480, 640): 2, (512, 672): 1,
         (512, 704): 1, (544, 736): 1, (576, 768): 1, (608, 800): 1}
    )  # fmt: skip
    assert Counter(batch_sizes((32, 64), 1)) == Counter([(32, 32), (32, 64)])
    assert batch_sizes((32, 32), 2) == [(32, 32), (32, 32)]


def test_a_step_has_one_size_and_its_images_are_resampled_to_the_nearest_pixel() -> None:
    sizes: Counter[tuple[int, ...]] = Counter()
    settings: dict[str, Any] = {"size": (96, 128), "world": 2, "parts": 2}
    for epoch in range(12):
        scaled = [make(Augmentation(multi_scale=2), epoch=epoch, rank=rank, **settings) for rank in range(2)]
        plain = make(Augmentation(), epoch=epoch, rank=1, **settings)
        for step in range(2):
            pieces = [batches[2 * step + part] for batches in scaled for part in range(2)]
            shapes = {tuple(images.shape[-2:]) for images, _ in pieces}
            assert len(shapes) == 1
            sizes.update(shapes)
            images, targets = plain[2 * step + 1]
            assert_equal((F.interpolate(images, size=next(iter(shapes)), mode="nearest"), targets), pieces[3])
    assert set(sizes) == set(batch_sizes((96, 128), 2)) == {(64, 96), (96, 128), (128, 160)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"world": 3}, "a batch of 8 images for 3 processes with 1 parts each; expected a multiple of 3"),
        ({"world": 2, "parts": 3}, "a batch of 8 images for 2 processes with 3 parts each; expected a multiple of 6"),
        ({"batch_size": 22}, "21 training images do not fill one batch of 22; lower --batch-size"),
        ({"size": (64, 90)}, "must be divisible by 32"),
    ],
)
def test_what_cannot_be_batched_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**settings)
