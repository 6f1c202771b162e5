"""Bringing the annotations of a split into arrays, and finding everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detectors.data.annotations import Annotations, place
from detectors.data.content import Content
from detectors.data.problems import InvalidBoxes, Kind, Problem, dataset_error, refused

# Annotation tools round: a box may overhang the image by this many pixels and is clipped.
OVERHANG = 1.0


def sound_annotations(
    content: Content, class_names: Sequence[str] | None = None, invalid_boxes: InvalidBoxes = "raise"
) -> Annotations:
    """Return annotations that must be in order.

    Args:
        content: category ids may be any integers.
        class_names: the order of the classes, from a model or another split. None: by category id.
        invalid_boxes: "drop" leaves out boxes that are not finite, without area, or over 1 pixel outside the image.

    Raises:
        DatasetError: everything that is wrong with them.
    """
    annotations, problems = examine_annotations(content, class_names)
    if problems := refused(problems, invalid_boxes):
        raise dataset_error(problems)
    return annotations


def examine_annotations(
    content: Content, class_names: Sequence[str] | None = None
) -> tuple[Annotations, list[Problem]]:
    """Return what is sound in the annotations, and all that is not. Arguments: see `sound_annotations`."""
    examination = _Examination(content, list(content.problems))
    names, category_ids = examination.categories(class_names)
    images = examination.images()
    rows = examination.rows(category_ids, images)
    boxes = examination.boxes(rows, images)
    kept = ~np.isnan(boxes).any(axis=1)
    targets = np.flatnonzero(kept & ~rows.crowd)
    targets = targets[np.argsort(rows.image[targets], kind="stable")]
    if not len(images.ids) or not len(targets):
        examination.note(Kind.EMPTY, f"{len(images.ids)} usable images, {len(targets)} usable boxes")
    annotations = Annotations(
        file=content.file,
        images_dir=content.images_dir,
        class_names=names,
        category_ids=category_ids,
        file_names=images.names,
        label_files=images.label_files,
        image_ids=np.array(images.ids, dtype=np.int64),
        sizes=images.sizes,
        upright=content.upright,
        boxes=boxes[targets],
        labels=rows.label[targets],
        places=rows.places[targets],
        starts=np.searchsorted(rows.image[targets], np.arange(len(images.ids) + 1)).astype(np.int64),
        crowd_boxes=int(rows.crowd.sum()),
        dropped_boxes=int((~kept).sum()),
    )
    return annotations, examination.problems


class _Images(NamedTuple):
    """The I sound images; arrays and names as in `Annotations`."""

    ids: list[int]
    names: list[str]
    label_files: list[str]
    sizes: NDArray[np.int64]


class _Rows(NamedTuple):
    """The A annotations with a known image and category; arrays as in `Annotations`, xywh in pixels."""

    places: NDArray[np.int64]
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    xywh: NDArray[np.float64]
    crowd: NDArray[np.bool_]


@dataclass
class _Examination:
    """Goes through the annotations and notes the problems."""

    content: Content
    problems: list[Problem] = field(default_factory=list)

    def note(self, kind: Kind, detail: str) -> None:
        self.problems.append(Problem(kind, self.content.file, detail))

    def categories(self, expected: Sequence[str] | None) -> tuple[list[str], list[int]]:
        names: dict[int, str] = {}
        for entry in self._entries("categories", {"id": int, "name": str}):
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

    def images(self) -> _Images:
        ids: dict[int, str] = {}
        file_names: set[str] = set()
        sizes, label_files = [], []
        required = {"id": int, "file_name": str, "width": int, "height": int}
        for entry in self._entries("images", required):
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
            label_files.append(entry["label_file"] if self.content.has_lines else "")
        return _Images(list(ids), list(ids.values()), label_files, np.array(sizes, dtype=np.int64).reshape(-1, 2))

    def rows(self, category_ids: list[int], images: _Images) -> _Rows:
        image_index = {key: index for index, key in enumerate(images.ids)}
        label_of = {key: index for index, key in enumerate(category_ids)}
        seen: set[int] = set()
        places, image, label, xywh, crowd = [], [], [], [], []
        required = {"id": int, "image_id": int, "category_id": int, "bbox": list}
        for entry in self._entries("annotations", required):
            key, image_id, category_id, box = (entry[name] for name in required)
            if key in seen:
                self.note(Kind.DUPLICATE, f"annotation id {key}")
            seen.add(key)
            index = image_index.get(image_id)
            if index is None:
                self.note(Kind.UNKNOWN_IMAGE, f"annotation {key}: there is no image {image_id}")
            elif category_id not in label_of:
                self.note(
                    Kind.UNKNOWN_CATEGORY,
                    f"annotation {key} ({images.names[index]}): there is no category {category_id}",
                )
            elif len(box) != 4 or not all(type(value) in (int, float) for value in box):
                self.note(Kind.MALFORMED, f"annotation {key}: bbox {box} is not [x, y, width, height]")
            else:
                places.append(entry["line"] if self.content.has_lines else key)
                image.append(index)
                label.append(label_of[category_id])
                xywh.append(box)
                crowd.append(bool(entry.get("iscrowd", 0)))
                if crowd[-1]:
                    self.note(Kind.CROWD, f"{place(images.label_files[index], places[-1])} ({images.names[index]})")
        return _Rows(
            np.array(places, dtype=np.int64),
            np.array(image, dtype=np.int64),
            np.array(label, dtype=np.int64),
            np.array(xywh, dtype=np.float64).reshape(-1, 4),
            np.array(crowd, dtype=np.bool_),
        )

    def boxes(self, rows: _Rows, images: _Images) -> NDArray[np.float32]:
        """Return the boxes as (A, 4) float32 xyxy, clipped to the image; NaN where they are invalid."""
        limits = images.sizes[rows.image].astype(np.float64)
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
            elif (xywh[row, 2:] < 0).any():
                kind = Kind.BOX_INVERTED
            elif inside[row] or not sided[row]:
                kind = Kind.BOX_WITHOUT_AREA
            else:
                kind = Kind.BOX_OUTSIDE
            image = rows.image[row]
            width, height = images.sizes[image]
            self.note(
                kind,
                f"{place(images.label_files[image], rows.places[row])} ({images.names[image]}, {width} × {height}): "
                f"bbox {rows.xywh[row].tolist()}",
            )
        return np.where(valid[:, None], clipped, np.float32("nan"))

    def _entries(
        self, key: Literal["images", "annotations", "categories"], required: dict[str, type]
    ) -> Iterator[dict[str, Any]]:
        """Yield the entries of a list that are objects with the required keys of the required types."""
        for position, entry in enumerate(getattr(self.content, key)):
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
