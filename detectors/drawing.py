"""Pictures of images with their detections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324"]


def draw_detections(
    image: Tensor, detections: dict[str, Tensor], class_names: Sequence[str], threshold: float = 0.4
) -> Tensor:
    """Return an image with boxes, class names and scores drawn on it.

    Args:
        image: (3, H, W) uint8.
        detections: "scores" (K,), "labels" (K,), "boxes" (K, 4) xyxy in pixels of the image.
        class_names: name of each label.
        threshold: lowest score that is drawn.

    Returns:
        (3, H, W) uint8.
    """
    from torchvision.utils import draw_bounding_boxes

    kept = detections["scores"] >= threshold
    if not kept.any():
        return image.clone()
    labels = detections["labels"][kept].tolist()
    scores = detections["scores"][kept].tolist()
    return draw_bounding_boxes(
        image,
        detections["boxes"][kept].round(),
        labels=[f"{class_names[label]} {score:.2f}" for label, score in zip(labels, scores, strict=True)],
        colors=[_COLOURS[label % len(_COLOURS)] for label in labels],
        width=2,
    )


def save_grid(path: Path, images: Sequence[Tensor], columns: int = 4, enlarge: int = 2) -> Path:
    """Write images (3, H, W) uint8 of one size as one PNG, row by row, each pixel `enlarge` times as wide."""
    from PIL import Image
    from torchvision.utils import make_grid

    grid = make_grid(torch.stack(list(images)), nrow=columns, padding=4, pad_value=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid.movedim(0, -1).numpy()).resize(
        (grid.shape[2] * enlarge, grid.shape[1] * enlarge), Image.Resampling.NEAREST
    ).save(path, format="PNG")
    return path
