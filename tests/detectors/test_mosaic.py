from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.drawn_samples import DrawnSamples
from torch import Tensor
from torchvision import tv_tensors

from detectors.data import batches
from detectors.data.augmentation import Augmentation
from detectors.data.batches import Batches
from detectors.data.mosaic import join_tiles, mosaic
from vfmdistill.errors import InputError

# What the authors' code (RT-DETRv4 commit df44122, torchvision 0.29) makes of DrawnSamples(40), as mean and standard
# error of the mean over 10,000 draws: tiles of 80 pixels, images of 160 × 160.
EXPECTED = {
    "alone": {
        "boxes": (1.5989, 0.0127),
        "covered": (0.16631, 0.00184),
        "black": (0.34011, 0.00390),
        "brightness": (0.32947, 0.00199),
        "box_area": (0.13872, 0.00183),
        "longest": (0.38982, 0.00260),
        "aspect": (0.08096, 0.00369),
        "offset": (0.20769, 0.00084),
    },
    "mosaic": {
        "boxes": (7.6607, 0.0286),
        "covered": (0.15435, 0.00087),
        "black": (0.27582, 0.00248),
        "brightness": (0.32052, 0.00113),
        "box_area": (0.02050, 0.00009),
        "longest": (0.20495, 0.00059),
        "aspect": (-0.02822, 0.00247),
        "offset": (0.23605, 0.00062),
    },
}


def sample(key: int, height: int, width: int, box: tuple[float, ...]) -> tuple[tv_tensors.Image, dict[str, Any]]:
    pixels = torch.full((3, height, width), key, dtype=torch.uint8)
    boxes = tv_tensors.BoundingBoxes(
        torch.tensor([box], dtype=torch.float32), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(height, width)
    )
    target = {
        "labels": torch.tensor([key]),
        "boxes": boxes,
        "image_id": torch.tensor(key),
        "orig_size": torch.tensor([height, width]),
    }
    return tv_tensors.Image(pixels), target


SAMPLES = [
    sample(10, 20, 40, (0, 0, 40, 20)),
    sample(20, 40, 20, (0, 0, 10, 10)),
    sample(30, 40, 40, (4, 8, 20, 20)),
    sample(40, 80, 40, (0, 40, 40, 80)),
]


def test_tiles_keep_their_shape_and_stand_two_by_two() -> None:
    image, target = join_tiles(SAMPLES, tile_side=10)
    assert image.shape == (3, 40, 40)  # of tiles of 10 × 20, 20 × 10, 10 × 10 and 20 × 10
    assert image.dtype == torch.uint8
    expected = torch.zeros(40, 40, dtype=torch.uint8)
    expected[:10, :20] = 10
    expected[:20, 20:30] = 20
    expected[20:30, :10] = 30
    expected[20:40, 20:30] = 40
    assert torch.equal(image[1].as_subclass(Tensor), expected)
    assert target["labels"].tolist() == [10, 20, 30, 40]
    assert target["boxes"].tolist() == [[0, 0, 20, 10], [20, 0, 25, 5], [1, 22, 5, 25], [20, 30, 30, 40]]
    assert target["boxes"].canvas_size == (40, 40)
    assert target["image_id"].item() == 10
    assert target["orig_size"].tolist() == [20, 40]


def test_images_without_boxes_are_tiles_too() -> None:
    empty, target = SAMPLES[0]
    target = {
        **target,
        "labels": target["labels"][:0],
        "boxes": tv_tensors.wrap(target["boxes"][:0], like=target["boxes"]),
    }
    _, joined = join_tiles([(empty, target)] * 4, tile_side=10)
    assert joined["boxes"].shape == (0, 4)
    torch.manual_seed(0)
    _, moved = mosaic([(empty, target)] * 4, tile_side=10)
    assert moved["boxes"].shape == (0, 4)


def test_the_canvas_keeps_its_size_and_holds_all_boxes() -> None:
    torch.manual_seed(0)
    outside = 0
    for _ in range(50):
        image, target = mosaic(SAMPLES, tile_side=10)
        assert image.shape == (3, 40, 40)
        assert target["boxes"].shape == (4, 4)
        assert target["labels"].tolist() == [10, 20, 30, 40]
        assert ((target["boxes"] >= 0) & (target["boxes"] <= 40)).all()
        outside += (target["boxes"][:, 2:] <= target["boxes"][:, :2]).any(dim=1).sum().item()
    assert outside < 20


def test_turns_shifts_and_scales_within_their_bounds() -> None:
    torch.manual_seed(0)
    # Two small objects at (14, 14) and (26, 26) of the canvas of 40 × 40, too near its middle to be clipped.
    before, after = sample(1, 40, 40, (27, 27, 29, 29)), sample(2, 40, 40, (11, 11, 13, 13))
    angles, scales, shifts = [], [], []
    for _ in range(400):
        _, target = mosaic([before, before, before, after], tile_side=20)
        centres = (target["boxes"][[0, 3], :2] + target["boxes"][[0, 3], 2:]) / 2
        between, middle = centres[1] - centres[0], centres.mean(0)
        angles.append(math.degrees(torch.atan2(between[1], between[0])) - 45)
        scales.append(between.norm().item() / math.hypot(12, 12))
        shifts += ((middle - 20) / 40).tolist()
    for drawn, low, high in ((angles, -10, 10), (scales, 0.5, 1.5), (shifts, -0.1, 0.1)):
        assert low - 1e-3 <= min(drawn) < low + (high - low) / 20
        assert high - (high - low) / 20 < max(drawn) <= high + 1e-3


@pytest.mark.parametrize(("count", "side"), [(3, 10), (5, 10), (4, 0)])
def test_what_is_no_mosaic_is_refused(count: int, side: int) -> None:
    with pytest.raises(InputError, match=rf"a mosaic of {count} images with tiles of {side} pixels; expected 4 images"):
        mosaic((SAMPLES * 2)[:count], side)


def figures(image: Tensor, target: dict[str, Tensor]) -> dict[str, float]:
    """Return what is compared; without boxes, only what can be said.

    The number of boxes, the sum of their areas, the share of black pixels, the mean brightness, the mean area of a box,
    the longest side, the mean logarithm of width over height, and the mean distance of centres from the middle.
    """
    boxes = target["boxes"]
    sides = boxes[:, 2:]
    areas = sides.prod(dim=1)
    made = {
        "boxes": float(len(boxes)),
        "covered": areas.sum().item(),
        "black": (image.amax(dim=0) == 0).float().mean().item(),
        "brightness": image.mean().item(),
    }
    if len(boxes):
        made["box_area"] = areas.mean().item()
        made["longest"] = sides.max().item()
        made["aspect"] = (sides[:, 0] / sides[:, 1]).log().mean().item()
        made["offset"] = (boxes[:, :2] - 0.5).abs().mean().item()
    return made


def test_the_dense_stage_has_the_statistics_of_the_authors_code(monkeypatch: pytest.MonkeyPatch) -> None:
    made = 0

    def counted(*args: Any) -> Any:
        nonlocal made
        made += 1
        return mosaic(*args)

    monkeypatch.setattr(batches, "mosaic", counted)
    data, draws = DrawnSamples(40), 2000
    found: dict[str, dict[str, list[float]]] = {"mosaic": {}, "alone": {}}
    for draw in range(draws):
        epoch, index = divmod(draw, len(data))
        dense = Batches(
            data, size=(160, 160), batch_size=1, augmentation=Augmentation(strong=True, mosaic=0.5), seed=2, epoch=epoch
        )
        before = made
        for name, value in figures(*dense.sample(index)).items():
            found["alone" if made == before else "mosaic"].setdefault(name, []).append(value)
    assert abs(made / draws - 0.5) < 3.5 * 0.5 / math.sqrt(draws)
    for kind, expected in EXPECTED.items():
        for name, (mean, error) in expected.items():
            values = torch.tensor(found[kind][name], dtype=torch.float64)
            own_error = values.std().item() / math.sqrt(len(values))
            deviations = (values.mean().item() - mean) / math.hypot(error, own_error)
            assert abs(deviations) < 3.5, f"{kind}: {name} is {values.mean():.5g}, expected {mean} ± {own_error:.2g}"
