"""Detections: what a detector finds in one picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from detectors.drawing import draw_detections
from detectors.pixels import Picture, to_pixels
from vfmdistill.errors import InputError, unknown_name


class Detection(NamedTuple):
    """One object: score in [0, 1], class index and name, and (left, top, right, bottom) in pixels."""

    score: float
    label: int
    name: str
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The K objects found in one picture, best first, on the CPU.

    `len(detections)` is K, and iterating yields a `Detection` for each.

    Attributes:
        scores: (K,) float32 in [0, 1].
        labels: (K,) int64 class indices.
        boxes: (K, 4) float32, xyxy in pixels of the picture; they are not clipped to it.
        size: (height, width) of the picture in pixels.
        class_names: the name of each class index.
        category_ids: the data set's id of each class index, or None where the detector does not know any.

    Raises:
        InputError: lengths that differ, or a label without a name.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    size: tuple[int, int]
    class_names: Sequence[str]
    category_ids: Sequence[int] | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.scores.shape != (count,) or self.labels.shape != (count,) or self.boxes.shape != (count, 4):
            shapes = [tuple(value.shape) for value in (self.scores, self.labels, self.boxes)]
            raise InputError(f"scores, labels and boxes must have the shapes (K,), (K,), (K, 4); got {shapes}.")
        if count and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.class_names):
            raise InputError(f"the labels {sorted(set(self.labels.tolist()))} go beyond {len(self.class_names)} names.")
        if self.category_ids is not None and len(self.category_ids) != len(self.class_names):
            raise InputError(f"{len(self.category_ids)} category ids for {len(self.class_names)} classes.")

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        columns = (self.scores.tolist(), self.labels.tolist(), self.names, self.boxes.tolist())
        for score, label, name, box in zip(*columns, strict=True):
            yield Detection(score, label, name, tuple(box))

    def __repr__(self) -> str:
        shown = ", ".join(f"{found.name} {found.score:.2f}" for _, found in zip(range(5), self, strict=False))
        more = f", and {len(self) - 5} more" if len(self) > 5 else ""
        return f"Detections({len(self)} in {self.size[0]} × {self.size[1]}{': ' if shown else ''}{shown}{more})"

    def filter(self, threshold: float = 0.0, classes: Iterable[str | int] | None = None) -> Detections:
        """Return the detections that score at least `threshold` and, if given, are of one of some classes.

        Args:
            threshold: lowest score.
            classes: names or class indices.

        Raises:
            UnknownNameError: there is no such class.
        """
        kept = self.scores >= threshold
        if classes is not None:
            kept &= torch.isin(self.labels, torch.tensor(self._indices(classes), dtype=self.labels.dtype))
        return replace(self, scores=self.scores[kept], labels=self.labels[kept], boxes=self.boxes[kept])

    def as_dict(self) -> dict[str, Tensor]:
        """Return "scores", "labels" and "boxes", as `detectors.postprocess` and `CocoEvaluator.process` know them."""
        return {"scores": self.scores, "labels": self.labels, "boxes": self.boxes}

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return the detections in COCO's results format: category ids, boxes as [x, y, width, height].

        Args:
            image_id: what the picture is called in the results.
            category_ids: the id of each class index. None: the data set's, that the detector was trained on.

        Raises:
            InputError: the detector knows no category ids and none are given.
        """
        ids = self.category_ids if category_ids is None else category_ids
        if ids is None:
            raise InputError(
                "the detector does not know the category ids of a data set: give category_ids, one for each of its "
                f"{len(self.class_names)} classes, for example range({len(self.class_names)})."
            )
        corners = self.boxes.double()
        sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)
        columns = (self.scores.tolist(), self.labels.tolist(), sides.tolist())
        return [
            {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
            for score, label, box in zip(*columns, strict=True)
        ]

    def draw(self, picture: Picture) -> Image.Image:
        """Return the picture as a Pillow image with boxes, class names and scores drawn on it.

        Raises:
            InputError: the picture cannot be read, or has another size than the one that was looked at.
        """
        pixels = to_pixels(picture)
        if tuple(pixels.shape[1:]) != self.size:
            raise InputError(
                f"the picture is {pixels.shape[1]} × {pixels.shape[2]}, the detections are of one of "
                f"{self.size[0]} × {self.size[1]}; give the picture that was looked at."
            )
        if pixels.is_floating_point():
            pixels = (pixels * 255).round().byte()
        drawn = draw_detections(pixels, self.as_dict(), self.class_names, threshold=0.0)
        return Image.fromarray(drawn.movedim(0, -1).contiguous().numpy())

    def _indices(self, classes: Iterable[str | int]) -> list[int]:
        return [class_index(key, self.class_names) for key in ([classes] if isinstance(classes, str) else classes)]


def class_index(key: str | int, class_names: Sequence[str]) -> int:
    """Return the index of a class that is given by its name or index.

    Raises:
        UnknownNameError: there is no such class.
    """
    if isinstance(key, int) and 0 <= key < len(class_names):
        return key
    if key not in class_names:
        raise unknown_name("class", str(key), class_names, f"There are {len(class_names)}, counted from 0.")
    return list(class_names).index(str(key))
