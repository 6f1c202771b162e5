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
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from detectors.data.augmentation import Augmentation
from detectors.data.batches import Batches
from support.drawn_samples import DrawnSamples

IMAGES = 25
SHORTEST = 16  # pixels: below, the half pixel at each edge that cannot be seen is 10 % of the area


def coloured_region(pixels: NDArray[np.float32], box: tuple[float, ...]) -> Tensor:
    """Return the box (4,) xyxy around the object that covers the centre of a box. Pixels are (h, w, 3)."""
    height, width = pixels.shape[:2]
    left, top, right, bottom = box
    x, y = int((left + right) / 2), int((top + bottom) / 2)
    inside = pixels[y, x]
    around = [(y, int(left - 3)), (y, int(right + 3)), (int(top - 3), x), (int(bottom + 3), x)]
    ground = np.median([pixels[v, u] for v, u in around if 0 <= v < height and 0 <= u < width], axis=0)
    nearer_inside = ((pixels - inside) ** 2).sum(-1) < ((pixels - ground) ** 2).sum(-1)
    parts, _ = ndimage.label(nearer_inside)
    ys, xs = np.nonzero(parts == parts[y, x])
    return torch.tensor([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=torch.float32)


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
            if min(left, top, width - right, height - bottom) < 1:
                clipped += 1
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
    a = np.array(checked)
    print(len(checked), clipped, small, a.min(), np.quantile(a, [.001, .01, .5]))
    assert min(checked) >= 0.9
    assert len(checked) > clipped + small
    assert len(checked) > 1.2 * draws
