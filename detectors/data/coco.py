"""CocoDataset: the images and boxes of one split."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from detectors.data.examination import sound_annotations
from detectors.data.formats import read_content
from detectors.data.ground_truth import upright_content
from detectors.data.images import read_picture
from detectors.data.orientation import boxes_refer_to_stored, turn_boxes
from detectors.data.problems import InvalidBoxes
from vfmdistill.errors import InputError

Target = dict[str, Any]
Sample = tuple[tv_tensors.Image, Target]
Transform = Callable[[tv_tensors.Image, Target], Sample]


class CocoDataset(Dataset[Sample]):
    """One split of a data set in the format of COCO, with any category ids, YOLO or Pascal VOC.

    `dataset[i]` is `(image, target)`. The image is an RGB `tv_tensors.Image` (3, H, W), uint8 before the transform.
    The target holds `labels` (M,) int64 contiguous class indices, `boxes` (M, 4), `image_id` () int64, and
    `orig_size` (2,) int64, the (height, width) of the picture in pixels. Boxes are `tv_tensors.BoundingBoxes` xyxy in
    pixels before the transform, and what the transform makes of them after it (`train_transform` and
    `eval_transform`: cxcywh in [0, 1]).

    Pictures are turned upright as their EXIF orientation says, and boxes with them: in COCO and Pascal VOC those that
    were drawn on the stored pixels, which the annotated size tells (where it leaves both open, these are assumed); in
    YOLO none, for they refer to the upright picture. Crowd regions are no training targets, nor are objects that are
    `difficult` in Pascal VOC; `ground_truth` has them, for the evaluator to pass over.

    Every random draw of the transform follows from (seed, epoch, index), whatever the number of workers and the order
    of the samples, and leaves the caller's random state alone. `set_epoch` begins another epoch, also for workers
    that live on between epochs; training draws its batches by `Batches` instead.

    Args:
        images_dir: the folder that the file names of the annotations are relative to; see `Split`.
        annotation_file: the JSON file, YOLO's data.yaml or classes.txt, Pascal VOC's list of images or folder of
            annotations; see `Split`.
        transform: called with (image, target); it draws from torch's global CPU generator, as torchvision's do.
        class_names: the classes in the order of a model or of the training split; the file must have the same.
            None: the file's own, by category id.
        invalid_boxes: "drop" leaves out boxes that are not finite, without area, or over 1 pixel outside the image.
        seed: of the transform's draws, not negative.

    Attributes:
        class_names: the name of each class index.
        category_ids: the category id of each class index.
        annotation_file: what messages call the annotations: the JSON file, YOLO's folder of labels, Pascal VOC's list.
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
        if seed < 0:
            raise InputError(f"seed is {seed}; expected a number that is not negative.")
        self._source = (Path(images_dir), Path(annotation_file))
        content = read_content(*self._source)
        self.images_dir = content.images_dir
        if not self.images_dir.is_dir():
            raise InputError(f"image folder {self.images_dir} does not exist or is no directory.")
        self._annotations = sound_annotations(content, class_names, invalid_boxes)
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

    @property
    def digest(self) -> str:
        """A SHA-256 over classes, file names, sizes and boxes: equal where the same would be trained on."""
        return self._annotations.digest()

    @property
    def box_counts(self) -> list[int]:
        """How many boxes each image has."""
        starts = self._annotations.starts
        return [int(count) for count in starts[1:] - starts[:-1]]

    def ground_truth(self) -> dict[str, Any]:
        """Return the annotations as a COCO file holds them, for the evaluator.

        Boxes and sizes are those of the upright pictures, as in the samples; crowd regions and boxes that
        `invalid_boxes="drop"` left out are among them. Where no picture is turned, it is the content of a COCO file.

        Raises:
            InputError: the size of an image cannot be read.
        """
        return upright_content(read_content(*self._source))

    def load(self, index: int) -> Sample:
        """Return one sample, upright, before any transform.

        Raises:
            InputError: the image cannot be read.
        """
        annotations = self._annotations
        picture, stored, orientation = read_picture(self.images_dir / annotations.file_names[index])
        image = tv_tensors.Image(picture)
        height, width = image.shape[-2:]
        first, last = annotations.starts[index], annotations.starts[index + 1]
        corners = annotations.boxes[first:last]
        if not annotations.upright and boxes_refer_to_stored(stored, orientation, annotations.size(index)):
            corners = turn_boxes(corners, stored, orientation)
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(corners.copy()),
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
