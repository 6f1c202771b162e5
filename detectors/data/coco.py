"""CocoDataset: images and boxes of one annotation file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from detectors.data.annotations import InvalidBoxes, read_annotations
from detectors.data.images import read_image
from vfmdistill.errors import InputError

Target = dict[str, Any]
Sample = tuple[tv_tensors.Image, Target]
Transform = Callable[[tv_tensors.Image, Target], Sample]


class CocoDataset(Dataset[Sample]):
    """One split of a data set in COCO's format, with any category ids.

    `dataset[i]` is `(image, target)`. The image is an RGB `tv_tensors.Image` (3, H, W), uint8 before the transform.
    The target holds `labels` (M,) int64 contiguous class indices, `boxes` (M, 4), `image_id` () int64, and
    `orig_size` (2,) int64, the (height, width) of the file in pixels. Boxes are `tv_tensors.BoundingBoxes` xyxy in
    pixels before the transform, and what the transform makes of them after it (`train_transform` and
    `eval_transform`: cxcywh in [0, 1]).

    Crowd regions are no training targets; the evaluator reads them from the annotation file. An EXIF orientation is
    not applied: COCO's sizes and boxes refer to the stored pixels.

    Every random draw of the transform follows from (seed, epoch, index), whatever the number of workers and the order
    of the samples, and leaves the caller's random state alone. Call `set_epoch` before each epoch; it also reaches
    workers that live on between epochs.

    Args:
        images_dir: the folder that the file names of the annotations are relative to.
        annotation_file: the JSON file.
        transform: called with (image, target); it draws from torch's global CPU generator, as torchvision's do.
        class_names: the classes in the order of a model or of the training split; the file must have the same.
            None: the file's own, by category id.
        invalid_boxes: "drop" leaves out boxes that are not finite, without area, or over 1 pixel outside the image.
        seed: of the transform's draws, not negative.

    Attributes:
        class_names: the name of each class index.
        category_ids: the category id of each class index.
        annotation_file: where the annotations came from.
        dropped_boxes: how many boxes `invalid_boxes="drop"` left out.

    Raises:
        DatasetError: everything that is wrong with the annotations. `check_dataset` looks at the image files too.
        InputError: the image folder does not exist.
    """

    def __init__(
        self,
        images_dir: str | os.PathLike[str],
        annotation_file: str | os.PathLike[str],
        transform: Transform | None = None,
        class_names: Sequence[str] | None = None,
        *,
        invalid_boxes: InvalidBoxes = "raise",
        seed: int = 0,
    ) -> None:
        self.images_dir = Path(images_dir)
        if not self.images_dir.is_dir():
            raise InputError(f"image folder {self.images_dir} does not exist or is no directory.")
        if seed < 0:
            raise InputError(f"seed is {seed}; expected a number that is not negative.")
        self._annotations = read_annotations(annotation_file, class_names, invalid_boxes)
        self.annotation_file = self._annotations.file
        self.class_names = self._annotations.class_names
        self.category_ids = self._annotations.category_ids
        self.dropped_boxes = self._annotations.dropped_boxes
        self.transform = transform
        self.seed = seed
        # In shared memory, so that workers which were started in an earlier epoch see the new one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self._annotations.file_names)

    @property
    def epoch(self) -> int:
        """The epoch that the random draws belong to."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Let the following samples be drawn for another epoch."""
        self._epoch.fill_(epoch)

    def load(self, index: int) -> Sample:
        """Return one sample as it is on disk, before any transform.

        Raises:
            InputError: the image cannot be read.
        """
        annotations = self._annotations
        image = tv_tensors.Image(read_image(self.images_dir / annotations.file_names[index]))
        height, width = image.shape[-2:]
        first, last = annotations.starts[index], annotations.starts[index + 1]
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(annotations.boxes[first:last].copy()),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        )
        target = {
            "labels": torch.from_numpy(annotations.labels[first:last].copy()),
            "boxes": boxes,
            "image_id": torch.tensor(int(annotations.image_ids[index])),
            "orig_size": torch.tensor([height, width]),
        }
        return image, target

    def __getitem__(self, index: int) -> Sample:
        image, target = self.load(index)
        if self.transform is None:
            return image, target
        with torch.random.fork_rng(devices=[]):
            # The CPU generator alone: torch.manual_seed would also reseed the accelerators of the process.
            torch.default_generator.manual_seed(sample_seed(self.seed, self.epoch, index))
            return self.transform(image, target)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Mix three numbers into the 64-bit seed of one sample's draws; neighbours get unrelated streams."""
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0])
