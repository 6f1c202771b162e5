"""What the doctor says about the boxes of one split."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
from numpy.typing import NDArray

from detectors.data.annotations import Annotations
from detectors.data.inspection import Inspection
from detectors.data.orientation import boxes_refer_to_stored, is_unclear, upright_size
from detectors.data.problems import Kind, Problem

# Two boxes of one class with a higher IoU are one object that was annotated twice.
REPEATED_IOU = 0.99

# A side shorter than this in the file is a slip of the mouse …
TINY_IN_FILE = 2.0
# … and one that is shorter than this after the resize cannot be seen.
TINY_AT_INPUT = 1.0


def repeated_boxes(annotations: Annotations) -> Iterator[Problem]:
    """Yield the boxes that lie on an earlier one of the same class in the same image."""
    images, labels, boxes = annotations.images_of_boxes(), annotations.labels, annotations.boxes.astype(np.float64)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    # An IoU near 1 needs areas of nearly the same size: each box is compared with those next to it by area.
    order = np.lexsort((areas, labels, images))
    rows = np.arange(len(order))
    pairs: dict[int, tuple[int, float]] = {}
    for step in count(1):
        rows = rows[rows + step < len(order)]
        one, other = order[rows], order[rows + step]
        near = (images[one] == images[other]) & (labels[one] == labels[other])
        near &= areas[one] > REPEATED_IOU * areas[other]
        rows, one, other = rows[near], one[near], other[near]
        if not len(rows):
            break
        overlaps = _iou(boxes[one], boxes[other])
        for index in np.flatnonzero(overlaps > REPEATED_IOU):
            earlier, later = sorted((int(one[index]), int(other[index])))
            found = (earlier, float(overlaps[index]))
            pairs[later] = min(pairs.get(later, found), found)
    for later, (earlier, overlap) in sorted(pairs.items()):
        image = int(images[later])
        same = "is" if overlap == 1 else f"lies with IoU {overlap:.3f} on"
        yield Problem(
            Kind.BOX_REPEATED,
            annotations.file,
            f"{annotations.place(image, later)} {same} {annotations.place(image, earlier)} "
            f"({annotations.file_names[image]}, {annotations.class_names[labels[later]]})",
        )


def tiny_boxes(inspection: Inspection, input_size: tuple[int, int]) -> Iterator[Problem]:
    """Yield the boxes with a side below 2 pixels in the file, or below 1 once the picture is resized.

    Args:
        inspection: of the split.
        input_size: (height, width) that the detector resizes pictures to.
    """
    annotations = inspection.annotations
    images = annotations.images_of_boxes()
    targets = np.tile(np.array(input_size[::-1], dtype=np.float64), (len(annotations.sizes), 1))
    for image, facts in enumerate(inspection.images):
        # Boxes that refer to stored pixels lying on their side: their width becomes a height.
        if facts is not None and upright_size(facts.stored, facts.orientation) != annotations.size(image):
            targets[image] = input_size
    scales = targets / annotations.sizes.clip(1)
    sides = (annotations.boxes[:, 2:] - annotations.boxes[:, :2]).astype(np.float64)
    resized = sides * scales[images]
    for box in np.flatnonzero((sides < TINY_IN_FILE).any(axis=1) | (resized < TINY_AT_INPUT).any(axis=1)):
        image = int(images[box])
        yield Problem(
            Kind.BOX_TINY,
            annotations.file,
            f"{annotations.place(image, int(box))} ({annotations.file_names[image]}): "
            f"{sides[box, 0]:.2f} × {sides[box, 1]:.2f} pixels, "
            f"{resized[box, 0]:.2f} × {resized[box, 1]:.2f} at {input_size[1]} × {input_size[0]}",
        )


def turned_pictures(inspection: Inspection) -> Iterator[Problem]:
    """Yield the pictures that EXIF turns, and say how their boxes are taken."""
    annotations = inspection.annotations
    for image, facts in enumerate(inspection.images):
        if facts is None or facts.orientation == 1:
            continue
        kind = Kind.ORIENTATION
        if annotations.upright:
            how = "boxes refer to the upright picture"
        elif annotations.starts[image] == annotations.starts[image + 1]:
            how = "there are no boxes"
        elif is_unclear(facts.stored, facts.orientation):
            kind, how = Kind.ORIENTATION_UNCLEAR, "boxes are taken to refer to the stored pixels"
        elif boxes_refer_to_stored(facts.stored, facts.orientation, annotations.size(image)):
            how = "boxes refer to the stored pixels and turn with them"
        else:
            how = "boxes refer to the upright picture"
        name = annotations.file_names[image]
        yield Problem(kind, annotations.file, f"{name}: orientation {facts.orientation}, {how}")


def _iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of each of P boxes with its partner, (P, 4) xyxy each to (P,)."""
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    common = (high - low).clip(0).prod(axis=1)
    union = sum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (one, other)) - common
    return np.asarray(common / union, dtype=np.float64)
