"""Mosaic: four images as one, turned, shifted and scaled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from detectors.data.coco import Sample
from detectors.data.transforms import OnPillow
from vfmdistill.errors import InputError

TILES = 4


def mosaic(samples: Sequence[Sample], tile_side: int) -> Sample:
    """Join four samples two by two, then rotate, shift and scale what came of it on a canvas of the same size.

    The tiles keep their aspect ratio and stand at the upper left of cells of the largest tile's size; what is left
    over is black. Rotation within ±10°, shift within 10 % of the canvas, scale from 0.5 to 1.5, drawn from torch's
    global CPU generator. The box of a rotated object is the box around its rotated box. Boxes are clipped to the
    canvas; those that lie outside are left without area, for `SanitizeBoundingBoxes`.

    Dense O2O of DEIM (https://arxiv.org/abs/2412.04234, section 3.1).

    Args:
        samples: as `CocoDataset.load` returns them; everything but labels and boxes is taken from the first.
        tile_side: shorter side of each tile in pixels.

    Raises:
        InputError: not four samples, or a side below 1 pixel.
    """
    joined = join_tiles(samples, tile_side)
    # The nearest pixel, RandomAffine's default, is what the published models were trained with.
    affine = OnPillow(v2.RandomAffine(degrees=10, translate=(0.1, 0.1), scale=(0.5, 1.5), fill=0))
    transformed: Sample = affine(*joined)
    return transformed


def join_tiles(samples: Sequence[Sample], tile_side: int) -> Sample:
    """Do the first half of `mosaic`: resize and join, with nothing random. Arguments and errors: see there."""
    if len(samples) != TILES or tile_side < 1:
        raise InputError(
            f"a mosaic of {len(samples)} images with tiles of {tile_side} pixels; expected {TILES} images and 1 pixel "
            "or more."
        )
    resize = v2.Resize([tile_side])
    tiles = [resize(*sample) for sample in samples]
    height = max(image.shape[-2] for image, _ in tiles)
    width = max(image.shape[-1] for image, _ in tiles)
    # Channels last in memory, as pictures from files are: Pillow takes it as it lies.
    canvas = torch.zeros(2 * height, 2 * width, 3, dtype=torch.uint8).permute(2, 0, 1)
    boxes: list[Tensor] = []
    for number, (image, target) in enumerate(tiles):
        top, left = number // 2 * height, number % 2 * width
        canvas[:, top : top + image.shape[-2], left : left + image.shape[-1]] = image
        boxes.append(target["boxes"].as_subclass(Tensor) + torch.tensor([left, top, left, top]))
    joined = {
        **samples[0][1],
        "labels": torch.cat([target["labels"] for _, target in tiles]),
        "boxes": tv_tensors.BoundingBoxes(
            torch.cat(boxes), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(2 * height, 2 * width)
        ),
    }
    return tv_tensors.Image(canvas), joined
