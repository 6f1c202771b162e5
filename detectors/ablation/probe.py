"""SemanticProbe: what can be read at a student's tap, and how alike that is to its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

import vfmdistill
from detectors.data.coco import CocoDataset
from detectors.data.layout import locate_split
from detectors.data.problems import InvalidBoxes
from detectors.data.transforms import eval_transform

from .alignment import map_likeness, mismatched
from .linear_probe import STRENGTHS, Floats, Ints, chance, choose, cross_validate, fit
from .probe_features import Reader, Readout, batches, evenly, read, tap_reader
from .probe_record import Alignment, ProbeFigures

PERMUTATIONS = 5  # of the labels, for the control
_MOST_BYTES = 2 * 2**30  # of images in float32 that are kept in memory, rather than read again for every network


class SemanticProbe:
    """Probes networks on the objects of one data set, all in the same way; it trains none of them.

    Args:
        data: folder of the data set.
        size: (height, width) of the images.
        teachers: that students are compared with, by name, on `device`.
        device: where to compute.
        batch_size: images that are looked at together.
        workers: processes that read images.
        most_images: of the validation set, whose cells are compared with the teacher's.
        invalid_boxes: "drop" leaves out boxes without area or outside.
        tap: path of the students' module; None: the one that distillation aligns unless it is told otherwise.

    Attributes:
        class_names: the names of the classes.

    Raises:
        InputError: there is no such data set, or the size is not divisible by 32.
    """

    def __init__(
        self,
        data: Path,
        size: tuple[int, int],
        *,
        teachers: Mapping[str, vfmdistill.Teacher],
        device: torch.device,
        batch_size: int = 16,
        workers: int = 0,
        most_images: int = 300,
        invalid_boxes: InvalidBoxes = "raise",
        tap: str | None = None,
    ) -> None:
        transform = eval_transform(size)
        train = CocoDataset(*locate_split(data, "train"), transform, invalid_boxes=invalid_boxes)
        self.class_names = train.class_names
        val = CocoDataset(*locate_split(data, "val"), transform, train.class_names, invalid_boxes=invalid_boxes)
        self._train, self._val = (batches(split, batch_size=batch_size, workers=workers) for split in (train, val))
        if (len(train) + len(val)) * size[0] * size[1] * 3 * 4 <= _MOST_BYTES:
            self._train, self._val = list(self._train), list(self._val)  # every network sees the same images
        self._compared = evenly(len(val), most_images)
        self._device, self._tap = device, tap
        self._teachers = dict(teachers)
        self._read: dict[tuple[str, tuple[int, int]], tuple[Readout, Readout]] = {}

    def student(self, student: nn.Module) -> tuple[ProbeFigures, dict[str, Alignment]]:
        """Return what is found at a student's tap, and how alike that is to every teacher; it is left as it was.

        Raises:
            DistillError: the student cannot be read, or its features cannot be probed.
        """
        with tap_reader(student, self._tap) as reader:
            train, val = self._splits(reader)
        alignment = {name: self._alignment(val, name) for name in self._teachers}
        return figures_of(train, val, len(self.class_names)), alignment

    def teacher(self, name: str, grid: tuple[int, int]) -> ProbeFigures:
        """Return what is found in a teacher's map on a grid."""
        return figures_of(*self._taught(name, grid), len(self.class_names))

    def _splits(self, reader: Reader) -> tuple[Readout, Readout]:
        first = read(reader, self._train, self._device)
        return first, read(reader, self._val, self._device, self._compared)

    def _taught(self, name: str, grid: tuple[int, int]) -> tuple[Readout, Readout]:
        if (name, grid) not in self._read:
            teacher = self._teachers[name]
            self._read[name, grid] = self._splits(lambda images: teacher(images, grid).map)
        return self._read[name, grid]

    def _alignment(self, val: Readout, name: str) -> Alignment:
        _, taught = self._taught(name, val.grid)
        same, floor = map_likeness(val.maps, taught.maps), map_likeness(val.maps, mismatched(taught.maps))
        return Alignment(
            plain=same.plain,
            debiased=same.debiased,
            plain_floor=floor.plain,
            debiased_floor=floor.debiased,
            images=len(val.maps),
        )


def figures_of(train: Readout, val: Readout, classes: int, *, seed: int = 0) -> ProbeFigures:
    """Fit a linear classifier to one split, and judge it on another.

    Args:
        train: training objects; they alone decide on the strength of L2.
        val: validation objects.
        classes: how many there are.
        seed: of the folds and of the permutations.

    Raises:
        InputError: the features are not finite, or all training objects are in one image.
        DistillError: no minimum was found.
    """
    features, labels = _arrays(train)
    seen, wanted = _arrays(val)
    held_out = cross_validate(features, labels, train.images.numpy(), classes, strengths=STRENGTHS, seed=seed)
    strength = choose(held_out)
    classifier = fit(features, labels, classes, strength)
    draws = np.random.default_rng(seed)
    shuffled = [
        fit(features, draws.permutation(labels), classes, strength).accuracy(seen, wanted) for _ in range(PERMUTATIONS)
    ]
    return ProbeFigures(
        accuracy=classifier.accuracy(seen, wanted),
        train_accuracy=classifier.accuracy(features, labels),
        held_out=held_out[strength],
        chance=chance(labels, wanted, classes),
        shuffled=float(np.mean(shuffled)),
        strength=strength,
        at_edge=strength in (min(STRENGTHS), max(STRENGTHS)),
        train_objects=len(labels),
        objects=len(wanted),
        grid=val.grid,
        channels=features.shape[1],
    )


def _arrays(readout: Readout) -> tuple[Floats, Ints]:
    return readout.features.double().numpy(), readout.labels.numpy()
