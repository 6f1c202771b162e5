"""Pictures for the report of an ablation: features beside each other, and detections that changed."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as VF

from detectors.drawing import draw_detections
from vfmdistill.visualize import pca_maps, save_sheet

from .changes import changes

_SIDE = 560  # pixels along the longer side of an image with detections
_QUALITY = 85  # of JPEG
_EACH = 2  # images of every kind of change
_KINDS = {"found": "Newly found by", "lost": "No longer found by", "wrong": "Newly wrong in"}


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        title: what it shows.
        caption: how to read it.
        panels: parts that stand side by side where there is room, each with its name and as JPEG.
    """

    title: str
    caption: str
    panels: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Example:
    """An image with what two detectors find in it.

    Attributes:
        image: (3, H, W) uint8.
        truth: `labels` (M,), `boxes` (M, 4) xyxy in pixels.
        first, second: `scores` (D,), `labels` (D,), `boxes` (D, 4) xyxy in pixels.
    """

    image: Tensor
    truth: Mapping[str, Tensor]
    first: Mapping[str, Tensor]
    second: Mapping[str, Tensor]


def feature_picture(images: Sequence[Tensor], maps: Mapping[str, Tensor]) -> Picture:
    """Return images beside feature maps of them, coloured by their three principal components.

    Args:
        images: each (3, H, W), floats in [0, 1].
        maps: (N, C, h, w) of the N images, by the name of what they are from; each has principal components of its own.
    """
    columns = {"image": list(images), **{name: pca_maps(each) for name, each in maps.items()}}
    with tempfile.TemporaryDirectory() as folder:
        path = save_sheet(Path(folder) / "features.png", columns, width=200)
        content = _jpeg(Image.open(path))
    caption = (
        f"From left to right: {', '.join(columns)}. Three principal components as red, green and blue; within a column "
        "a colour means the same in all images, across columns it means nothing. Look at which places have one colour."
    )
    return Picture("Features", caption, (("", content),))


def detection_pictures(
    examples: Iterable[Example], names: tuple[str, str], class_names: Sequence[str], threshold: float
) -> list[Picture]:
    """Return the images in which two detectors differ most: newly found, no longer found, and newly wrong.

    Args:
        examples: all images of the validation set, which are looked at one after the other; few are kept.
        names: of the two detectors.
        class_names: name of each label.
        threshold: lowest score of a detection.
    """
    total, objects = Counter[str](), 0
    shown: dict[str, list[tuple[tuple[int, ...], Example]]] = {kind: [] for kind in _KINDS}
    for example in examples:
        objects += len(example.truth["labels"])
        found = asdict(changes(example.truth, example.first, example.second, threshold))
        total.update({kind: len(some) for kind, some in found.items()})
        for kind, most in shown.items():
            if found[kind]:
                most.append((found[kind], example))
                most.sort(key=lambda pair: len(pair[0]), reverse=True)
                del most[_EACH:]
    summary = (
        f"Of all {objects} validation objects, {total['found']} are found only by {names[1]} and {total['lost']} only "
        f"by {names[0]}; {total['wrong']} wrong detections are made only by {names[1]}, {total['righted']} only by "
        f"{names[0]}. Scores from {threshold:g}, IoU from 0.5. Of one seed, with the weights of its best epoch: the "
        "tables have all seeds, and the last epoch."
    )
    pictures = []
    for kind, most in shown.items():
        for which, example in most:
            labels = (example.second if kind == "wrong" else example.truth)["labels"][list(which)]
            what = ", ".join(class_names[label] for label in labels.tolist())
            title = f"{_KINDS[kind]} {names[1]}: {what}"
            pictures.append(Picture(title, summary, _panels(example, names, class_names, threshold)))
            summary = ""
    return pictures


def _panels(
    example: Example, names: tuple[str, str], class_names: Sequence[str], threshold: float
) -> tuple[tuple[str, bytes], ...]:
    factor = _SIDE / max(example.image.shape[1:])
    size = [round(side * factor) for side in example.image.shape[1:]]
    image = VF.resize(example.image, size, antialias=True)
    truth = {**example.truth, "scores": torch.ones(len(example.truth["labels"]))}
    panels: list[tuple[str, bytes]] = []
    for name, found in ((names[0], example.first), (names[1], example.second), ("annotation", truth)):
        scaled: dict[str, Any] = {**found, "boxes": found["boxes"].as_subclass(Tensor) * factor}
        drawn = draw_detections(image.as_subclass(Tensor), scaled, class_names, threshold)
        panels.append((name, _jpeg(Image.fromarray(drawn.movedim(0, -1).numpy()))))
    return tuple(panels)


def _jpeg(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()
