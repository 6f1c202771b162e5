"""DrawnSamples: pictures of coloured rectangles in memory, to be batched as a data set is."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

BACKGROUND = (128, 128, 128)
COLOURS = ((200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60), (200, 60, 200), (60, 200, 200))
SIZES = ((200, 160), (160, 200), (180, 180), (150, 220))  # height, width


class DrawnSamples:
    """Pictures of four sizes on a grey ground, each with up to four rectangles that fill their boxes.

    The rectangles stand in the quarters of the picture, with at least 8 pixels of ground around them; the colour is
    that of the label. Image i has the id i.
    """

    def __init__(self, images: int) -> None:
        self._samples = [self._draw(index) for index in range(images)]

    @staticmethod
    def _draw(index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        rng = np.random.default_rng([17, index])
        height, width = SIZES[index % len(SIZES)]
        pixels = np.full((height, width, 3), BACKGROUND, dtype=np.uint8)
        quarters = rng.permutation(4)[: index % 5]
        labels = rng.permutation(len(COLOURS))[: len(quarters)]
        boxes = []
        for quarter, label in zip(quarters, labels, strict=True):
            top, left = quarter // 2 * (height // 2) + 8, quarter % 2 * (width // 2) + 8
            h, w = height // 2 - 16, width // 2 - 16
            box_h, box_w = int(rng.integers(h * 3 // 5, h + 1)), int(rng.integers(w * 3 // 5, w + 1))
            y, x = top + int(rng.integers(h - box_h + 1)), left + int(rng.integers(w - box_w + 1))
            pixels[y : y + box_h, x : x + box_w] = COLOURS[label]
            boxes.append([x, y, x + box_w, y + box_h])
        target = {
            "labels": torch.tensor(labels, dtype=torch.int64),
            "boxes": tv_tensors.BoundingBoxes(
                torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                format=tv_tensors.BoundingBoxFormat.XYXY,
                canvas_size=(height, width),
            ),
            "image_id": torch.tensor(index),
            "orig_size": torch.tensor([height, width]),
        }
        # Channels last in memory, as pictures from files are.
        return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1)), target

    def __len__(self) -> int:
        return len(self._samples)

    def load(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        image, target = self._samples[index]
        return image, dict(target)
