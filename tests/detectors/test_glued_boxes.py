"""Boxes stay glued to their objects, whatever is done to the picture.

The objects are rectangles that fill their boxes, so that the box around a rotated box is the box around the rotated
object too and needs no allowance. What remains is the pixel: edges fall between pixels, mosaics take the nearest one,
and the corner of a rotated rectangle is thinner than a pixel.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from support.drawn_samples import DrawnSamples
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from detectors.data.augmentation import Augmentation
from detectors.data.batches import Batches

IMAGES = 25
SHORTEST = 16  # pixels: below, the half pixel at each edge that cannot be seen is 10 % of the area


def coloured_region(pixels: NDArray[np.float32], box: tuple[float, ...]) -> Tensor:
    """Return the box (4,) xyxy around the object that covers the centre of a box. Pixels are (h, w, 3).

    The object ends half-way between its colour and that of the ground, 2 pixels outside the box; it is looked for in
    an area of twice the box's height and width.
    """
    left, top, right, bottom = box
    x, y = int((left + right) / 2), int((top + bottom) / 2)
    distance = np.linalg.norm(pixels - pixels[y, x], axis=-1)
    outside = [(y, left - 2), (y, right + 2), (top - 2, x), (bottom + 2, x)]
    height, width = distance.shape
    ground = min(distance[int(v), int(u)] for v, u in outside if 0 <= v < height and 0 <= u < width)
    first_y, first_x = max(0, int(1.5 * top - bottom / 2)), max(0, int(1.5 * left - right / 2))
    area = distance[first_y : int(1.5 * bottom - top / 2) + 1, first_x : int(1.5 * right - left / 2) + 1]
    parts, _ = ndimage.label(area < ground / 2)
    ys, xs = np.nonzero(parts == parts[y - first_y, x - first_x])
    found = [xs.min() + first_x, ys.min() + first_y, xs.max() + first_x + 1, ys.max() + first_y + 1]
    return torch.tensor(found, dtype=torch.float32)


@pytest.mark.parametrize(
    ("augmentation", "draws", "size"),
    [
        (Augmentation(), 100, (256, 256)),
        (Augmentation(strong=True), 400, (320, 320)),
        (Augmentation(strong=True, mosaic=0.5), 300, (320, 320)),
        (Augmentation(strong=True, mosaic=1.0), 200, (256, 352)),
    ],
    ids=["plain", "strong", "dense", "all mosaics"],
)
def test_boxes_stay_on_their_objects(augmentation: Augmentation, draws: int, size: tuple[int, int]) -> None:
    data = DrawnSamples(IMAGES)
    height, width = size
    checked, clipped, small = [], 0, 0
    for draw in range(draws):
        epoch, index = divmod(draw, IMAGES)
        batches = Batches(data, size=size, batch_size=1, augmentation=augmentation, seed=3, epoch=epoch)
        image, target = batches.sample(index)
        pixels = image.permute(1, 2, 0).numpy()
        boxes = box_convert(target["boxes"], "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        assert len(boxes) == len(target["labels"])
        assert (boxes >= -1e-3).all()
        assert (boxes[:, 2:] <= torch.tensor([width, height]) + 1e-3).all()
        colours: dict[int, NDArray[np.float32]] = {}
        for label, box in zip(target["labels"].tolist(), boxes, strict=True):
            left, top, right, bottom = box.tolist()
            if augmentation.mosaic and min(left, top, width - right, height - bottom) < 1:
                clipped += 1  # what is left of a rotated rectangle has another box around it
                continue
            if min(right - left, bottom - top) < SHORTEST:
                small += 1
                continue
            seen = coloured_region(pixels, (left, top, right, bottom))
            checked.append(box_iou(box[None], seen[None]).item())
            colour = pixels[int((top + bottom) / 2), int((left + right) / 2)]
            assert np.abs(colours.setdefault(label, colour) - colour).max() < 0.03
        different = list(colours.values())
        assert all(np.abs(a - b).max() > 0.06 for i, a in enumerate(different) for b in different[:i])
    assert min(checked) >= 0.9
    assert len(checked) > clipped + small
    assert len(checked) > 1.2 * draws
