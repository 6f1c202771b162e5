"""What one detector finds in an image that another does not, and the other way round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

IOU = 0.5  # lowest overlap of a detection with its object


@dataclass(frozen=True)
class Changes:
    """How a second detector differs from a first one in an image.

    Attributes:
        found: objects (indices) that only the second one finds.
        lost: objects that only the first one finds.
        wrong: detections (indices) of the second one that are wrong and that the first one does not make.
        righted: wrong detections of the first one that the second one does not make.
    """

    found: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    wrong: tuple[int, ...] = ()
    righted: tuple[int, ...] = ()


def changes(
    truth: Mapping[str, Tensor], first: Mapping[str, Tensor], second: Mapping[str, Tensor], threshold: float
) -> Changes:
    """Compare two detectors in one image.

    Detections with at least `threshold` are taken by their scores, the surest first, and each finds the free object of
    its own class that it overlaps most, by an IoU of at least 0.5. Those that find none are wrong. Both detectors make
    the same wrong detection where class and box agree, again by an IoU of at least 0.5.

    Args:
        truth: `labels` (M,) and `boxes` (M, 4) xyxy.
        first, second: `scores` (D,), `labels` (D,) and `boxes` (D, 4) xyxy, in the pixels of the same image.
        threshold: lowest score of a detection.
    """
    found, wrong = zip(*(_match(truth, detections, threshold) for detections in (first, second)), strict=True)
    return Changes(
        found=tuple(sorted(found[1] - found[0])),
        lost=tuple(sorted(found[0] - found[1])),
        wrong=_without_twin(second, wrong[1], first, wrong[0]),
        righted=_without_twin(first, wrong[0], second, wrong[1]),
    )


def _match(
    truth: Mapping[str, Tensor], detections: Mapping[str, Tensor], threshold: float
) -> tuple[set[int], list[int]]:
    """Return the objects that are found, and the detections that find none."""
    order = detections["scores"].argsort(descending=True, stable=True)
    overlaps = box_iou(detections["boxes"].double(), truth["boxes"].double())
    same = detections["labels"][:, None] == truth["labels"]
    found: set[int] = set()
    wrong = []
    for index in order[detections["scores"][order] >= threshold].tolist():
        overlap = torch.where(same[index], overlaps[index], 0.0)
        overlap[list(found)] = 0.0
        if len(overlap) and overlap.max() >= IOU:
            found.add(int(overlap.argmax()))
        else:
            wrong.append(index)
    return found, wrong


def _without_twin(
    detections: Mapping[str, Tensor], some: list[int], others: Mapping[str, Tensor], theirs: list[int]
) -> tuple[int, ...]:
    overlaps = box_iou(detections["boxes"][some].double(), others["boxes"][theirs].double())
    twins = (detections["labels"][some][:, None] == others["labels"][theirs]) & (overlaps >= IOU)
    return tuple(index for index, twin in zip(some, twins.any(dim=1).tolist(), strict=True) if not twin)
