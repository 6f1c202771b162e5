"""Content: the annotations of one split as COCO writes them, whatever format they come from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectors.data.problems import Kind, Problem


@dataclass
class Content:
    """What the annotations of one split say, and what was wrong with their form.

    Attributes:
        file: what messages call the annotations: COCO's file, YOLO's folder of labels, Pascal VOC's list of images.
        images_dir: the folder that file names are relative to.
        images: COCO's list of images: id, file_name, width, height.
        annotations: COCO's list of annotations: id, image_id, category_id, bbox [x, y, width, height], iscrowd.
        categories: COCO's list of categories: id, name.
        problems: what could not be read, and is not in the lists.
        upright: boxes refer to upright pictures, whatever their sizes say.
        has_lines: images have a `label_file`, the name of the file with their boxes, and annotations a `line` in it.
        other_fields: what else COCO's file holds.
    """

    file: Path
    images_dir: Path
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    categories: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    upright: bool = False
    has_lines: bool = False
    other_fields: dict[str, Any] = field(default_factory=dict)

    def note(self, kind: Kind, detail: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(kind, self.file, detail))


def read_coco(images_dir: Path, file: Path) -> Content:
    """Read a COCO object detection file as it is; its entries are not looked at."""
    content = Content(file, images_dir)
    try:
        fields = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        content.note(Kind.MALFORMED, f"cannot be read as JSON: {error}")
        return content
    if not isinstance(fields, dict):
        content.note(Kind.MALFORMED, f"holds a {type(fields).__name__} where an object is expected")
        return content
    for name in ("images", "annotations", "categories"):
        entries = fields.pop(name, None)
        if isinstance(entries, list):
            setattr(content, name, entries)
        else:
            given = "is missing" if entries is None else f"is a {type(entries).__name__}"
            content.note(Kind.MALFORMED, f"the list `{name}` {given}")
    content.other_fields = fields
    return content
