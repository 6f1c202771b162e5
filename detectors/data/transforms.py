"""What happens to a sample between the file and the batch, on torchvision's v2 transforms.

Geometry runs on uint8 pixels and on boxes in pixels; the last two steps make float32 in [0, 1] of both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.transforms import v2

from detectors.input_size import check_input_size


def train_transform(size: tuple[int, int], augment: bool = True, *, mosaic: bool = False) -> v2.Compose:
    """Return the transform of training samples: (image, target) to (image, target).

    Images become float32 (3, h, w) in [0, 1], boxes cxcywh in [0, 1]; boxes that shrink below 1 pixel are removed with
    their labels. The aspect ratio is not kept, as in RT-DETR (https://arxiv.org/abs/2304.08069) and its descendants.

    Args:
        size: (height, width) of the result in pixels.
        augment: photometric distortion (p 0.5 for each part of it), zoom-out (p 0.5), IoU crop (p 0.8) and flip
            (p 0.5); otherwise the flip alone.
        mosaic: the samples are mosaics, which are neither zoomed out nor cropped.
    """
    stronger: list[nn.Module] = [OnPillow(v2.RandomPhotometricDistort(p=0.5))] if augment else []
    if augment and not mosaic:
        stronger += [v2.RandomZoomOut(fill=0), v2.RandomApply([IoUCrop()], p=0.8)]
    return v2.Compose(
        [
            *stronger,
            v2.SanitizeBoundingBoxes(min_size=1),
            v2.RandomHorizontalFlip(),
            v2.Resize(check_input_size(size)),
            v2.SanitizeBoundingBoxes(min_size=1),
            *_finish(),
        ]
    )


def eval_transform(size: tuple[int, int]) -> v2.Compose:
    """Return the transform of evaluation samples: resized to `size` (height, width), nothing random, no box removed."""
    return v2.Compose([v2.Resize(check_input_size(size)), *_finish()])


class OnPillow(nn.Module):
    """Runs a transform on a Pillow image: hue shifts and affine transforms take it a fraction of the time of tensors.

    Args:
        transform: called with (image, target), as torchvision's.
    """

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, image: tv_tensors.Image, target: dict[str, Any]) -> tuple[tv_tensors.Image, dict[str, Any]]:
        picture, transformed = self.transform(v2.functional.to_pil_image(image), target)
        return v2.functional.to_image(picture), transformed


class IoUCrop(nn.Module):
    """SSD's random crop around objects (https://arxiv.org/abs/1512.02325); an image without boxes is left whole.

    torchvision's crop would try some hundred times to find a box in such an image before it gave up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crop = v2.RandomIoUCrop()

    def forward(self, image: tv_tensors.Image, target: dict[str, Any]) -> tuple[tv_tensors.Image, dict[str, Any]]:
        if not len(target["boxes"]):
            return image, target
        cropped: tuple[tv_tensors.Image, dict[str, Any]] = self.crop(image, target)
        return cropped


class RelativeBoxes(nn.Module):
    """Turns boxes in pixels into a plain (M, 4) float32 tensor, cxcywh in [0, 1]."""

    def forward(self, image: tv_tensors.Image, target: dict[str, Any]) -> tuple[tv_tensors.Image, dict[str, Any]]:
        boxes = target["boxes"]
        height, width = boxes.canvas_size
        centred: Tensor = v2.functional.convert_bounding_box_format(
            boxes, new_format=tv_tensors.BoundingBoxFormat.CXCYWH
        ).as_subclass(Tensor)
        relative = centred.float() / torch.tensor([width, height, width, height], dtype=torch.float32)
        return image, {**target, "boxes": relative}


def _finish() -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), RelativeBoxes()]
