"""Readout: what maps say at the centres of a data set's objects, and some of the maps themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from detectors.data.coco import CocoDataset
from detectors.data.collate import collate
from vfmdistill.errors import InputError
from vfmdistill.probing import probe_images
from vfmdistill.student_maps import StudentMaps
from vfmdistill.tapping import adapter_and_taps

Reader: TypeAlias = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) in, maps (N, C, h, w) out."""
Batches: TypeAlias = Iterable[tuple[Tensor, list[dict[str, Any]]]]


@dataclass(frozen=True)
class Readout:
    """What was read from a split.

    Attributes:
        features: (M, C), at the centre of each object.
        labels: (M,), class indices.
        images: (M,), the number of each object's image.
        maps: (N, C, h, w), of the images that were to be kept.
    """

    features: Tensor
    labels: Tensor
    images: Tensor
    maps: Tensor

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the maps in cells."""
        return self.maps.shape[2], self.maps.shape[3]


@contextmanager
def tap_reader(student: nn.Module, tap: str | None = None) -> Iterator[Reader]:
    """Yield what reads a student's tap, in eval mode, without gradient.

    The student is left as it was: mode, buffers, hooks, random state.

    Args:
        student: a detector.
        tap: path of the module; None: the one that distillation aligns unless it is told otherwise.

    Raises:
        UnknownNameError: the student has no such module.
        InputError: there is not exactly one tap.
    """
    adapter, taps = adapter_and_taps(student, None, tap, probe_images(student))
    if len(taps) != 1:
        raise InputError(f"the student has {len(taps)} taps; expected one to probe.")
    maps = StudentMaps(student, adapter, taps)
    try:
        yield lambda images: maps.probe(images)[0]
    finally:
        maps.remove()


def at_centres(feature_map: Tensor, boxes: Tensor) -> Tensor:
    """Return what a map (C, h, w) says at the centres of boxes (M, 4), cxcywh in [0, 1], as (M, C).

    Between the centres of cells the map is interpolated, bilinearly; beyond the outermost ones it stays as it is there.
    An object near the border of two cells is half in each: the cell that holds its centre would tell half of it.
    """
    places = boxes[:, :2].to(feature_map) * 2 - 1  # -1 and 1 are the borders of the map
    found = F.grid_sample(feature_map[None], places[None, None], padding_mode="border", align_corners=False)
    return found[0, :, 0].T


def evenly(count: int, most: int) -> list[int]:
    """Return the numbers of at most `most` of `count` things, evenly spread."""
    most = min(count, most)
    return [position * count // most for position in range(most)]


def batches(data: CocoDataset, *, batch_size: int, workers: int = 0) -> Batches:
    """Return a data set's batches in its own order; the caller's random state is left alone."""
    loader: DataLoader[Any] = DataLoader(
        data, batch_size, num_workers=workers, collate_fn=collate, generator=torch.Generator()
    )
    return loader


def read(reader: Reader, split: Batches, device: torch.device, keep: Iterable[int] = ()) -> Readout:
    """Read a split once.

    Args:
        reader: gives the maps of a batch.
        split: images (N, 3, H, W) and targets with `labels` and `boxes`, cxcywh in [0, 1].
        device: that the reader wants images on.
        keep: numbers of the images whose maps are kept.

    Raises:
        InputError: there is no object in it, or maps differ in shape.
    """
    kept = set(keep)
    features, labels, owners, maps = [], [], [], []
    number = 0
    for images, targets in split:
        found = reader(images.to(device)).float().cpu()
        for feature_map, target in zip(found, targets, strict=True):
            features.append(at_centres(feature_map, target["boxes"]))
            labels.append(target["labels"])
            owners.append(torch.full_like(target["labels"], number))
            if number in kept:
                maps.append(feature_map)
            number += 1
    if not sum(map(len, labels)):
        raise InputError(f"{number} images without an object; expected some to probe. Give another data set.")
    if len({feature_map.shape for feature_map in maps}) > 1:
        raise InputError("the maps of the images differ in shape; bring all images to one size.")
    stacked = torch.stack(maps) if maps else torch.empty(0, *found.shape[1:])
    return Readout(torch.cat(features), torch.cat(labels), torch.cat(owners), stacked)
