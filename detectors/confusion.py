"""Confusion: which classes a detector takes for which, and what it misses or makes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vfmdistill.errors import InputError

BACKGROUND = "background"


class Mistake(NamedTuple):
    """One kind of mistake: in how many `cases` an object of `true` was found as `found`.

    One of the two may be "background". `share` is the part of all objects of `true` that this happened to; for
    detections where there is no object, the part of all detections of `found`.
    """

    true: str
    found: str
    cases: int
    share: float


class Confusion:
    """The confusion matrix of a detector's classes.

    In each image the detections with at least `threshold` are taken in the order of their scores, the surest first.
    Each is matched with the object that it overlaps most among those that are still free, whatever the classes, if
    their IoU is at least `iou`. What is left over belongs to the background: a detection without an object was made up,
    an object without a detection was missed. A second detection of an object counts as made up. Detections that are
    left over and lie at least by the share `iou` in a crowd region count for nothing.

    Args:
        class_names: the name of each class index.
        threshold: lowest score of the detections that count.
        iou: lowest IoU of a match, above 0.

    Attributes:
        matrix: (C + 1, C + 1) int64; row: the true class, column: the class found; the last of both: background. The
            last element is always 0. Rows without the last one sum to the objects of each class.

    Raises:
        InputError: `threshold` or `iou` is out of range.
    """

    def __init__(self, class_names: Sequence[str], threshold: float = 0.5, iou: float = 0.5) -> None:
        if not (0 <= threshold <= 1 and 0 < iou <= 1):
            raise InputError(f"threshold is {threshold} and iou {iou}; expected numbers up to 1, iou above 0.")
        self.class_names, self.threshold, self.iou = list(class_names), threshold, iou
        self.matrix = torch.zeros(len(class_names) + 1, len(class_names) + 1, dtype=torch.int64)

    def add(
        self, truth: Mapping[str, Tensor], detections: Mapping[str, Tensor], crowd_boxes: Tensor | None = None
    ) -> None:
        """Count one image.

        Args:
            truth: `labels` (M,) class indices and `boxes` (M, 4) xyxy.
            detections: `scores` (D,), `labels` (D,) and `boxes` (D, 4) xyxy, in the pixels of the same image.
            crowd_boxes: (R, 4) xyxy, regions of many objects that are not told apart; None for none.
        """
        from torchvision.ops import box_iou

        background = len(self.class_names)
        kept = detections["scores"].argsort(descending=True, stable=True)
        kept = kept[detections["scores"][kept] >= self.threshold]
        labels, boxes = detections["labels"][kept], detections["boxes"][kept].double()
        overlaps = box_iou(boxes, truth["boxes"].double())
        true = torch.full_like(labels, background)
        free = torch.ones(len(truth["labels"]), dtype=torch.bool)
        for row, overlap in enumerate(overlaps):
            overlap = torch.where(free, overlap, 0.0)
            if len(overlap) and overlap.max() >= self.iou:
                match = int(overlap.argmax())
                true[row], free[match] = truth["labels"][match], False
        counted = torch.ones_like(labels, dtype=torch.bool)
        if crowd_boxes is not None and len(crowd_boxes):
            counted = (true != background) | ~self._in_crowd(boxes, crowd_boxes.double())
        self._count(true[counted], labels[counted])
        missed = truth["labels"][free]
        self._count(missed, torch.full_like(missed, background))

    def most_frequent(self, count: int = 20) -> list[Mistake]:
        """Return the most frequent kinds of mistakes, those with the most cases first."""
        names = [*self.class_names, BACKGROUND]
        wrong = self.matrix.clone().fill_diagonal_(0)
        objects, found = self.matrix.sum(dim=1), self.matrix.sum(dim=0)
        mistakes = []
        for place in wrong.flatten().argsort(descending=True, stable=True)[:count].tolist():
            row, column = divmod(place, len(names))
            if not wrong[row, column]:
                break
            whole = objects[row] if row < len(self.class_names) else found[column]
            cases = int(wrong[row, column])
            mistakes.append(Mistake(names[row], names[column], cases, cases / int(whole)))
        return mistakes

    def _count(self, rows: Tensor, columns: Tensor) -> None:
        size = len(self.matrix)
        self.matrix += torch.bincount(rows * size + columns, minlength=size * size).view(size, size)

    def _in_crowd(self, boxes: Tensor, crowd_boxes: Tensor) -> Tensor:
        """Tell which boxes (D, 4) lie in one of the crowd regions, by the share of their own area."""
        low = torch.maximum(boxes[:, None, :2], crowd_boxes[:, :2])
        high = torch.minimum(boxes[:, None, 2:], crowd_boxes[:, 2:])
        covered = (high - low).clamp(min=0).prod(dim=2)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        return (covered >= self.iou * area[:, None]).any(dim=1) & (area > 0)
