from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torchvision import tv_tensors
from torchvision.ops import box_convert

from detectors.data.transforms import IoUCrop, eval_transform, train_transform
from vfmdistill.errors import InputError


def sample(boxes: list[list[float]], height: int = 60, width: int = 80) -> tuple[tv_tensors.Image, dict[str, Any]]:
    """A black picture in which each box fills its own colour channel; labels count from 0."""
    pixels = torch.zeros(3, height, width, dtype=torch.uint8)
    for channel, (left, top, right, bottom) in enumerate(boxes):
        pixels[channel, int(top) : int(bottom), int(left) : int(right)] = 200
    target = {
        "labels": torch.arange(len(boxes)),
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor(boxes).reshape(-1, 4), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(height, width)
        ),
        "image_id": torch.tensor(7),
        "orig_size": torch.tensor([height, width]),
    }
    return tv_tensors.Image(pixels), target


def test_evaluation_resizes_and_makes_relative_boxes() -> None:
    image, target = sample([[10.0, 20.0, 30.0, 50.0], [0.0, 0.0, 80.0, 60.0], [5.0, 5.0, 5.5, 5.5]])
    result, made = eval_transform((32, 64))(image, target)
    assert result.shape == (3, 32, 64)
    assert result.dtype == torch.float32
    assert 0 <= result.min() <= result.max() <= 1
    expected = torch.tensor(
        [
            [20 / 80, 35 / 60, 20 / 80, 30 / 60],
            [0.5, 0.5, 1.0, 1.0],
            [5.25 / 80, 5.25 / 60, 0.5 / 80, 0.5 / 60],
        ]
    )
    torch.testing.assert_close(made["boxes"], expected)
    assert type(made["boxes"]) is torch.Tensor
    assert made["labels"].tolist() == [0, 1, 2]
    assert made["image_id"].item() == 7
    assert made["orig_size"].tolist() == [60, 80]


def test_values_are_scaled_from_bytes() -> None:
    image = tv_tensors.Image(torch.full((3, 8, 8), 255, dtype=torch.uint8))
    _, target = sample([], 8, 8)
    result, _ = eval_transform((32, 32))(image, target)
    assert torch.equal(result.as_subclass(torch.Tensor), torch.ones(3, 32, 32))


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("boxes", [[], [[10.0, 20.0, 30.0, 50.0], [40.0, 5.0, 70.0, 40.0]]])
def test_training_keeps_labels_with_their_boxes(augment: bool, boxes: list[list[float]]) -> None:
    torch.manual_seed(0)
    transform = train_transform((64, 96), augment)
    kept = 0
    for _ in range(60):
        image, target = transform(*sample(boxes))
        assert image.shape == (3, 64, 96)
        assert image.dtype == torch.float32
        assert target["boxes"].shape == (len(target["labels"]), 4)
        assert target["boxes"].dtype == torch.float32
        assert target["labels"].dtype == torch.int64
        corners = box_convert(target["boxes"], "cxcywh", "xyxy")
        assert ((corners >= -1e-6) & (corners <= 1 + 1e-6)).all()
        assert (target["boxes"][:, 2:] > 0).all()
        kept += len(target["labels"])
    assert kept <= 60 * len(boxes)
    assert kept >= 60 * len(boxes) * (0.6 if augment else 1)


def test_the_strong_transform_is_that_of_the_published_models() -> None:
    # DEIM and RT-DETRv4, configs/base/deim.yml; ranges that are not named there are torchvision's defaults
    distortion, zoom, crop, *_, flip, _, _, _, _ = train_transform((64, 64)).transforms
    assert (distortion.transform.p, distortion.transform.hue) == (0.5, (-0.05, 0.05))
    assert (zoom.p, zoom.side_range, zoom.fill) == (0.5, (1.0, 4.0), 0)
    assert crop.p == 0.8
    assert (crop.transforms[0].crop.min_scale, crop.transforms[0].crop.trials) == (0.3, 40)
    assert flip.p == 0.5


def test_flip_alone_either_mirrors_or_leaves() -> None:
    torch.manual_seed(2)
    transform = train_transform((64, 96), augment=False)
    centres = {round(transform(*sample([[0.0, 0.0, 20.0, 30.0]]))[1]["boxes"][0, 0].item(), 4) for _ in range(30)}
    assert centres == {0.125, 0.875}


def test_training_removes_boxes_below_a_pixel_with_their_labels() -> None:
    image, target = sample([[10.0, 10.0, 40.0, 40.0], [50.0, 10.0, 52.0, 40.0], [10.0, 10.0, 40.0, 40.0]])
    _, made = train_transform((64, 32), augment=False)(image, target)
    assert made["labels"].tolist() == [0, 2]
    assert made["boxes"].shape == (2, 4)


def test_the_same_seed_gives_the_same_sample() -> None:
    transform = train_transform((64, 64))
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(transform(*sample([[10.0, 20.0, 30.0, 50.0]])))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1]["boxes"], results[1][1]["boxes"])
    assert not torch.equal(results[0][0], results[2][0])


def test_the_crop_leaves_a_picture_without_boxes_whole() -> None:
    image, target = sample([])
    state = torch.get_rng_state()
    result, _ = IoUCrop()(image, target)
    assert result is image
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("size", [(0, 32), (32, -1), (64, 90)])
@pytest.mark.parametrize("transform", [train_transform, eval_transform])
def test_impossible_sizes(transform: Callable[[tuple[int, int]], object], size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"height and width must be divisible by 32. The nearest sizes that work"):
        transform(size)
