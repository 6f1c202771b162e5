"""A small COCO data set on disk, for the tests of the data rooms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detectors.data.layout import Split


class CocoFiles:
    """Makes annotations and writes them with pictures."""

    @staticmethod
    def content(images: int = 3) -> dict[str, Any]:
        """Annotations of some 40 × 30 pictures, one box in each; category ids with gaps and out of order."""
        return {
            "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(images)],
            "annotations": [
                {"id": 100 + i, "image_id": 10 + i, "category_id": (90, 7, 13)[i % 3], "bbox": [2 + i, 3, 10, 12]}
                for i in range(images)
            ],
            "categories": [{"id": 90, "name": "zebra"}, {"id": 7, "name": "cat"}, {"id": 13, "name": "dog"}],
        }

    @staticmethod
    def write(root: Path, annotations: Any = None, images: int = 3, split: str = "train") -> Split:
        """Write pictures of random pixels and their annotations below `root`."""
        (root / "images").mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(0)
        for i in range(images):
            pixels = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        file = root / f"instances_{split}.json"
        file.write_text(json.dumps(CocoFiles.content(images) if annotations is None else annotations))
        return Split(root / "images", file)


@pytest.fixture
def coco_files() -> type[CocoFiles]:
    return CocoFiles
