"""Pictures of images with their detections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# All dark enough for white letters.
COLOURS = ("#e6194b", "#2e8b3d", "#4363d8", "#c75b12", "#911eb4", "#008080", "#c2209e", "#9a6324")


def draw_detections(
    image: Tensor, detections: Mapping[str, Tensor], class_names: Sequence[str], threshold: float = 0.4
) -> Tensor:
    """Return an image with boxes, class names and scores drawn on it, the surest on top.

    Lines and letters grow with the image. What lies outside the image is not seen.

    Args:
        image: (3, H, W) uint8.
        detections: "scores" (K,), "labels" (K,), "boxes" (K, 4) xyxy in pixels of the image.
        class_names: name of each label.
        threshold: lowest score that is drawn.

    Returns:
        (3, H, W) uint8.
    """
    scores, labels, boxes = (detections[key].cpu() for key in ("scores", "labels", "boxes"))
    order = scores.argsort()
    order = order[scores[order] >= threshold]
    if not len(order):
        return image.clone()
    picture = Image.fromarray(image.cpu().movedim(0, -1).contiguous().numpy())
    draw = ImageDraw.Draw(picture)
    side = max(picture.size)
    width = max(2, round(side / 400))
    font = ImageFont.load_default(max(10, round(side / 55)))
    for index in order.tolist():
        label = int(labels[index])
        # Far outside the image the drawing library counts in integers that overflow.
        left, top, right, bottom = boxes[index].round().clamp(-1e4, side + 1e4).tolist()
        if not (max(left, 0) <= min(right, picture.width - 1) and max(top, 0) <= min(bottom, picture.height - 1)):
            continue
        colour = COLOURS[label % len(COLOURS)]
        draw.rectangle((left, top, right, bottom), outline=colour, width=width)
        _write(draw, (left, top), f"{class_names[label]} {scores[index]:.2f}", font, colour, picture.size)
    drawn = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return drawn.view(picture.height, picture.width, 3).movedim(-1, 0).contiguous()


def _write(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: str,
    size: tuple[int, int],
) -> None:
    """Write a caption on a coloured ground above a box, or where there is no room, in its upper left corner."""
    _, _, width, height = draw.textbbox((2, 1), text, font=font)
    width, height = width + 2, height + 2
    left = max(0.0, min(corner[0], size[0] - width))
    top = corner[1] - height if corner[1] >= height else max(0.0, corner[1])
    draw.rectangle((left, top, left + width, top + height), fill=colour)
    draw.text((left + 2, top + 1), text, fill="white", font=font)


def save_grid(path: Path, images: Sequence[Tensor], columns: int = 4, enlarge: int = 2) -> Path:
    """Write images (3, H, W) uint8 of one size as one PNG, row by row, each pixel `enlarge` times as wide."""
    from torchvision.utils import make_grid

    grid = make_grid(torch.stack(list(images)), nrow=columns, padding=4, pad_value=255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid.movedim(0, -1).numpy()).resize(
        (grid.shape[2] * enlarge, grid.shape[1] * enlarge), Image.Resampling.NEAREST
    ).save(path, format="PNG")
    return path
