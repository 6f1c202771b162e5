"""A COCO data set that is put together picture by picture, for the tests of what the doctor finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detectors.data.doctor_report import DoctorReport

SIZE = (64, 48)


def pixels(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Draw another picture for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


class DataSet:
    """A COCO data set that grows box by box; every picture is another one."""

    def __init__(self, root: Path, *categories: tuple[int, str]) -> None:
        self.root, self.seed = root, 0
        self.categories = categories or ((1, "cat"), (2, "dog"))
        self.content: dict[str, dict[str, list[Any]]] = {}
        (root / "images").mkdir(parents=True, exist_ok=True)

    def add(
        self, split: str, name: str, *boxes: tuple[Any, ...], picture: Image.Image | None = None, **image: Any
    ) -> None:
        """Add a picture with boxes (category id, x, y, width, height)."""
        self.seed += 1
        content = self.content.setdefault(split, {"images": [], "annotations": []})
        if not (self.root / "images" / name).exists():
            picture = picture or pixels(self.seed)
            picture.save(self.root / "images" / name, exif=picture.getexif())
        number = len(content["images"]) + 1
        entry = {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]} | image
        content["images"].append(entry)
        for category, *bbox in boxes:
            key = len(content["annotations"]) + 1
            content["annotations"].append({"id": key, "image_id": number, "category_id": category, "bbox": bbox})

    def write(self, **categories: Any) -> Path:
        """Write the annotations of all splits; keywords give a split categories (id, name) of its own."""
        for split, content in self.content.items():
            given = categories.get(split, self.categories)
            entries = [{"id": key, "name": name} for key, name in given]
            text = json.dumps(content | {"categories": entries})
            (self.root / f"instances_{split}.json").write_text(text)
        return self.root


def sound(root: Path) -> DataSet:
    """Return a data set that nothing is to be said about: ten boxes of each class in train, one in val."""
    data = DataSet(root)
    for i in range(10):
        data.add("train", f"train{i}.png", (1, i, 2, 20, 10), (2, 3, i, 30, 20))
    data.add("val", "val.png", (1, 3, 2, 20, 10), (2, 3, 4, 30, 20))
    return data


def findings(report: DoctorReport) -> dict[tuple[str, str], list[str]]:
    """Return the places of each finding by (kind, split)."""
    return {(finding.kind, finding.split): finding.places for finding in report.findings}
