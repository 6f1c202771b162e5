"""The annotations of a split as arrays."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.data.orientation import Size


@dataclass(frozen=True)
class Annotations:
    """The annotations of one split as arrays, I images and A boxes; worker processes share them without copying.

    Attributes:
        file: what messages call them: COCO's file, YOLO's folder of labels, Pascal VOC's list of images.
        images_dir: the folder that file names are relative to.
        class_names: the name of each contiguous class index.
        category_ids: the category id of each contiguous class index.
        file_names: I names, relative to the image folder.
        label_files: I names of the files with the boxes of each image; "" where they come from a COCO file.
        image_ids: (I,) int64.
        sizes: (I, 2) int64, (width, height) in pixels.
        upright: boxes refer to upright pictures, whatever the sizes say.
        boxes: (A, 4) float32 xyxy in pixels, clipped to the image, grouped by image.
        labels: (A,) int64 contiguous class indices.
        places: (A,) int64 annotation ids; lines of the label files where there are such.
        starts: (I + 1,) int64; image i owns the boxes starts[i] to starts[i + 1].
        crowd_boxes: how many crowd regions there are; they are no training targets and not among `boxes`.
        dropped_boxes: how many boxes were left out as invalid.
    """

    file: Path
    images_dir: Path
    class_names: list[str]
    category_ids: list[int]
    file_names: list[str]
    label_files: list[str]
    image_ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    upright: bool
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    places: NDArray[np.int64]
    starts: NDArray[np.int64]
    crowd_boxes: int
    dropped_boxes: int

    def size(self, image: int) -> Size:
        """Return the annotated (width, height) of an image."""
        width, height = self.sizes[image].tolist()
        return width, height

    def images_of_boxes(self) -> NDArray[np.int64]:
        """Return the image that each box belongs to, (A,)."""
        return np.repeat(np.arange(len(self.file_names)), np.diff(self.starts))

    def place(self, image: int, box: int) -> str:
        """Say where a box stands: which annotation, or which line of which file."""
        return place(self.label_files[image], int(self.places[box]))

    def digest(self) -> str:
        """Return a SHA-256 over all of this but the folders: equal where the same would be trained on."""
        hashed = hashlib.sha256()
        names = [self.class_names, self.category_ids, self.file_names, self.upright]
        hashed.update(json.dumps(names).encode())
        for array in (self.image_ids, self.sizes, self.boxes, self.labels, self.starts):
            hashed.update(array.tobytes())
        return hashed.hexdigest()


def place(label_file: str, number: int) -> str:
    """Say where an annotation stands: its line in a label file, or its id where there is none."""
    return f"{label_file}:{number}" if label_file else f"annotation {number}"
