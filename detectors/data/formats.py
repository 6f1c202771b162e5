"""Reading the annotations of one split, in any of the formats."""

from __future__ import annotations

import os
from pathlib import Path

from detectors.data.content import Content, read_coco
from detectors.data.voc import read_voc
from detectors.data.yolo import read_yolo


def read_content(images_dir: str | os.PathLike[str], annotation_file: str | os.PathLike[str]) -> Content:
    """Read what a split says: COCO, YOLO (data.yaml, classes.txt) or Pascal VOC (a folder, or another .txt file).

    Args: as of `Split`. What is wrong is among the problems of the content.
    """
    images, file = Path(images_dir), Path(annotation_file)
    if file.suffix in (".yaml", ".yml") or file.name == "classes.txt":
        return read_yolo(images, file)
    if file.suffix == ".txt" or file.is_dir():
        return read_voc(images, file)
    return read_coco(images, file)
