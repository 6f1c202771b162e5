"""Looking through whole data sets, annotations and image files, before the first step is taken."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from detectors.data.inspection import Inspection, Watch, inspect_split
from detectors.data.problems import DatasetError, InvalidBoxes, dataset_error, refused

__all__ = ["DatasetError", "SplitSummary", "check_dataset", "inspect_dataset", "summarise"]


class SplitSummary(NamedTuple):
    """What a sound split holds."""

    annotation_file: Path
    class_names: list[str]
    images: int
    boxes: int
    crowd_boxes: int
    dropped_boxes: int


def check_dataset(
    *splits: tuple[str | os.PathLike[str], str | os.PathLike[str]],
    class_names: Sequence[str] | None = None,
    invalid_boxes: InvalidBoxes = "raise",
) -> list[SplitSummary]:
    """Read every annotation and decode every image of some splits, and name everything that is wrong.

    Args:
        *splits: (image folder, annotation file) each, as `locate_split` returns them.
        class_names: what the classes of every split have to be, in any order. None: those of the first split.
        invalid_boxes: "drop" accepts boxes that are not finite, without area, or over 1 pixel outside the image;
            they are left out of training and counted in the summary.

    Returns:
        What each split holds, in the order in which they were given.

    Raises:
        DatasetError: all problems of all splits, with file and id or line each.
    """
    return summarise(inspect_dataset(*splits, class_names=class_names), invalid_boxes)


def inspect_dataset(
    *splits: tuple[str | os.PathLike[str], str | os.PathLike[str]],
    class_names: Sequence[str] | None = None,
    watch: Watch | None = None,
) -> list[Inspection]:
    """Look through some splits as `check_dataset` does, and return what was found, good and bad."""
    inspections = []
    for images_dir, annotation_file in splits:
        inspection = inspect_split(images_dir, annotation_file, class_names, watch)
        if class_names is None:
            class_names = inspection.annotations.class_names or None
        inspections.append(inspection)
    return inspections


def summarise(inspections: Iterable[Inspection], invalid_boxes: InvalidBoxes = "raise") -> list[SplitSummary]:
    """Return what each split holds.

    Raises:
        DatasetError: all problems of all splits; see `check_dataset`.
    """
    inspections = list(inspections)
    problems = [problem for inspection in inspections for problem in inspection.problems]
    if problems := refused(problems, invalid_boxes):
        raise dataset_error(problems)
    return [
        SplitSummary(
            annotation_file=annotations.file,
            class_names=annotations.class_names,
            images=len(annotations.file_names),
            boxes=len(annotations.boxes),
            crowd_boxes=annotations.crowd_boxes,
            dropped_boxes=annotations.dropped_boxes,
        )
        for annotations, *_ in inspections
    ]
