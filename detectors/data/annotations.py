"""Reading a COCO annotation file into arrays, and finding everything that is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from detectors.data.problems import INVALID_BOX_KINDS, Kind, Problem, dataset_error

# Annotation tools round: a box may overhang the image by this many pixels and is clipped.
OVERHANG = 1.0

InvalidBoxes = Literal["raise", "drop"]


@dataclass(frozen=True)
class Annotations:
    """One annotation file as arrays, I images and A boxes; worker processes share them without copying.

    Attributes:
        file: where it was read from.
        class_names: the name of each contiguous class index.
        category_ids: the category id of each contiguous class index.
        file_names: I names, relative to the image folder.
        image_ids: (I,) int64.
        sizes: (I, 2) int64, (width, height) in pixels.
        boxes: (A, 4) float32 xyxy in pixels, clipped to the image, grouped by image.
        labels: (A,) int64 contiguous class indices.
        starts: (I + 1,) int64; image i owns the boxes starts[i] to starts[i + 1].
        crowd_boxes: how many crowd regions the file holds; they are no training targets and not among `boxes`.
        dropped_boxes: how many boxes were left out as invalid.
    """

    file: Path
    class_names: list[str]
    category_ids: list[int]
    file_names: list[str]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    starts: NDArray[np.int64]
    crowd_boxes: int
    dropped_boxes: int


def read_annotations(
    file: str | os.PathLike[str], class_names: Sequence[str] | None = None, invalid_boxes: InvalidBoxes = "raise"
) -> Annotations:
    """Read an annotation file that must be in order.

    Args:
        file: a COCO object detection file. Category ids may be any integers.
        class_names: the order of the classes, from a model or another split. None: by category id.
        invalid_boxes: "drop" leaves out boxes that are not finite, without area, or over 1 pixel outside the image.

    Raises:
        DatasetError: everything that is wrong with the file.
    """
    annotations, problems = examine_annotations(file, class_names, invalid_boxes)
    if problems:
        raise dataset_error(problems)
    return annotations


def examine_annotations(
    file: str | os.PathLike[str], class_names: Sequence[str] | None = None, invalid_boxes: InvalidBoxes = "raise"
) -> tuple[Annotations, list[Problem]]:
    """Read what is sound in an annotation file; return it and all that is not. Arguments: see `read_annotations`."""
    examination = _Examination(Path(file))
    content = examination.load()
    names, category_ids = examination.categories(content, class_names)
    file_names, image_ids, sizes = examination.images(content)
    rows = examination.rows(content, category_ids, image_ids, file_names)
    boxes = examination.boxes(rows, sizes, file_names)
    kept = ~np.isnan(boxes).any(axis=1)
    targets = np.flatnonzero(kept & ~rows.crowd)
    targets = targets[np.argsort(rows.image[targets], kind="stable")]
    if not len(image_ids) or not len(targets):
        examination.note(Kind.EMPTY, f"{len(image_ids)} usable images, {len(targets)} usable boxes")
    problems = examination.problems
    if invalid_boxes == "drop":
        problems = [problem for problem in problems if problem.kind not in INVALID_BOX_KINDS]
    annotations = Annotations(
        file=examination.file,
        class_names=names,
        category_ids=category_ids,
        file_names=file_names,
        image_ids=np.array(image_ids, dtype=np.int64),
        sizes=sizes,
        boxes=boxes[targets],
        labels=rows.label[targets],
        starts=np.searchsorted(rows.image[targets], np.arange(len(image_ids) + 1)).astype(np.int64),
        crowd_boxes=int(rows.crowd.sum()),
        dropped_boxes=int((~kept).sum()),
    )
    return annotations, problems


@dataclass(frozen=True)
class _Rows:
    """The A annotations with a known image and category: id, indices of image and class, xywh in pixels, crowd."""

    ids: list[int]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    xywh: NDArray[np.float64]
    crowd: NDArray[np.bool_]


@dataclass
class _Examination:
    """Goes through one file and notes the problems."""

    file: Path
    problems: list[Problem] = field(default_factory=list)

    def note(self, kind: Kind, detail: str) -> None:
        self.problems.append(Problem(kind, self.file, detail))

    def load(self) -> dict[str, Any]:
        try:
            content = json.loads(self.file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            self.note(Kind.MALFORMED, f"cannot be read as JSON: {error}")
            return {}
        if not isinstance(content, dict):
            self.note(Kind.MALFORMED, f"holds a {type(content).__name__} where an object is expected")
            return {}
        for key in ("images", "annotations", "categories"):
            if not isinstance(content.get(key), list):
                given = f"is a {type(content[key]).__name__}" if key in content else "is missing"
                self.note(Kind.MALFORMED, f"the list `{key}` {given}")
                content[key] = []
        return content

    def categories(self, content: dict[str, Any], expected: Sequence[str] | None) -> tuple[list[str], list[int]]:
        names: dict[int, str] = {}
        for entry in self._entries(content, "categories", {"id": int, "name": str}):
            if entry["id"] in names:
                self.note(Kind.DUPLICATE, f"category id {entry['id']}: {names[entry['id']]!r} and {entry['name']!r}")
            elif entry["name"] in names.values():
                self.note(Kind.DUPLICATE, f"category name {entry['name']!r} (category id {entry['id']})")
            else:
                names[entry["id"]] = entry["name"]
        if expected is None:
            ids = sorted(names)
            return [names[key] for key in ids], ids
        if len(set(expected)) < len(expected):
            repeated = sorted({name for name in expected if list(expected).count(name) > 1})
            self.note(Kind.CLASSES, f"the expected class list repeats {', '.join(repeated)}")
        if missing := [name for name in expected if name not in names.values()]:
            self.note(Kind.CLASSES, f"expected but not in the file: {', '.join(missing)}")
        if surplus := [name for name in names.values() if name not in expected]:
            self.note(Kind.CLASSES, f"in the file but not expected: {', '.join(surplus)}")
        id_of = {name: key for key, name in names.items()}
        # Classes that do not match keep a place at the end, so that their annotations are still looked at.
        order = [*(name for name in dict.fromkeys(expected) if name in id_of), *surplus]
        return order, [id_of[name] for name in order]

    def images(self, content: dict[str, Any]) -> tuple[list[str], list[int], NDArray[np.int64]]:
        ids: dict[int, str] = {}
        file_names: set[str] = set()
        sizes = []
        required = {"id": int, "file_name": str, "width": int, "height": int}
        for entry in self._entries(content, "images", required):
            key, name = entry["id"], entry["file_name"]
            if key in ids:
                self.note(Kind.DUPLICATE, f"image id {key}: {ids[key]} and {name}")
                continue
            if name in file_names:
                self.note(Kind.DUPLICATE, f"image file {name} (image id {key})")
            if min(entry["width"], entry["height"]) < 1:
                self.note(Kind.MALFORMED, f"image {key} ({name}) is {entry['width']} × {entry['height']}")
            ids[key] = name
            file_names.add(name)
            sizes.append((entry["width"], entry["height"]))
        return list(ids.values()), list(ids), np.array(sizes, dtype=np.int64).reshape(-1, 2)

    def rows(
        self, content: dict[str, Any], category_ids: list[int], image_ids: list[int], file_names: list[str]
    ) -> _Rows:
        image_index = {key: index for index, key in enumerate(image_ids)}
        label_of = {key: index for index, key in enumerate(category_ids)}
        seen: set[int] = set()
        ids, image, label, xywh, crowd = [], [], [], [], []
        required = {"id": int, "image_id": int, "category_id": int, "bbox": list}
        for entry in self._entries(content, "annotations", required):
            key, image_id, category_id, box = (entry[name] for name in required)
            if key in seen:
                self.note(Kind.DUPLICATE, f"annotation id {key}")
            seen.add(key)
            if image_id not in image_index:
                self.note(Kind.UNKNOWN_IMAGE, f"annotation {key}: there is no image {image_id}")
            elif category_id not in label_of:
                name = file_names[image_index[image_id]]
                self.note(Kind.UNKNOWN_CATEGORY, f"annotation {key} ({name}): there is no category {category_id}")
            elif len(box) != 4 or not all(type(value) in (int, float) for value in box):
                self.note(Kind.MALFORMED, f"annotation {key}: bbox {box} is not [x, y, width, height]")
            else:
                ids.append(key)
                image.append(image_index[image_id])
                label.append(label_of[category_id])
                xywh.append(box)
                crowd.append(bool(entry.get("iscrowd", 0)))
        return _Rows(
            ids,
            np.array(image, dtype=np.int64),
            np.array(label, dtype=np.int64),
            np.array(xywh, dtype=np.float64).reshape(-1, 4),
            np.array(crowd, dtype=np.bool_),
        )

    def boxes(self, rows: _Rows, sizes: NDArray[np.int64], file_names: list[str]) -> NDArray[np.float32]:
        """Return the boxes as (A, 4) float32 xyxy, clipped to the image; NaN where they are invalid."""
        limits = sizes[rows.image].astype(np.float64)
        finite = _all(np.isfinite(rows.xywh))
        xywh = np.where(finite[:, None], rows.xywh, 0.0)
        low, high = xywh[:, :2], xywh[:, :2] + xywh[:, 2:]
        inside = _all(low >= -OVERHANG) & _all(high <= limits + OVERHANG)
        clipped = np.concatenate([low.clip(0, limits), high.clip(0, limits)], axis=1).astype(np.float32)
        sided = _all(xywh[:, 2:] > 0)
        valid = finite & inside & sided & _all(clipped[:, 2:] > clipped[:, :2])
        for row in np.flatnonzero(~valid):
            if not finite[row]:
                kind = Kind.BOX_NOT_FINITE
            elif inside[row] or not sided[row]:
                kind = Kind.BOX_WITHOUT_AREA
            else:
                kind = Kind.BOX_OUTSIDE
            width, height = sizes[rows.image[row]]
            self.note(
                kind,
                f"annotation {rows.ids[row]} ({file_names[rows.image[row]]}, {width} × {height}): "
                f"bbox {rows.xywh[row].tolist()}",
            )
        return np.where(valid[:, None], clipped, np.float32("nan"))

    def _entries(self, content: dict[str, Any], key: str, required: dict[str, type]) -> Iterator[dict[str, Any]]:
        """Yield the entries of a list that are objects with the required keys of the required types."""
        for position, entry in enumerate(content.get(key, [])):
            if not isinstance(entry, dict):
                self.note(Kind.MALFORMED, f"{key}[{position}] is a {type(entry).__name__}, not an object")
                continue
            # `type`, not `isinstance`: JSON's true and false are no ids.
            faults = [
                f"`{name}` is {entry[name]!r}, not {kind.__name__}" if name in entry else f"`{name}` is missing"
                for name, kind in required.items()
                if type(entry.get(name)) is not kind
            ]
            if faults:
                where = f"{key}[{position}] (id {entry.get('id', 'missing')})"
                self.note(Kind.MALFORMED, f"{where}: {', '.join(faults)}")
                continue
            yield entry


def _all(conditions: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return whether all conditions of a row hold, (A, K) to (A,)."""
    return np.asarray(conditions.all(axis=1), dtype=np.bool_)
