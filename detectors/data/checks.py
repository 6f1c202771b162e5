"""Looking through whole data sets, annotations and image files, before the first step is taken."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from detectors.data.annotations import Annotations, InvalidBoxes, examine_annotations
from detectors.data.images import image_problem
from detectors.data.problems import DatasetError, Kind, Problem, dataset_error

__all__ = ["DatasetError", "SplitSummary", "check_dataset"]


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
    threads: int | None = None,
) -> list[SplitSummary]:
    """Read every annotation and decode every image of some splits, and name everything that is wrong.

    Args:
        *splits: (image folder, annotation file) each, as `locate_split` returns them.
        class_names: what the classes of every split have to be, in any order. None: those of the first split.
        invalid_boxes: "drop" accepts boxes that are not finite, without area, or over 1 pixel outside the image;
            they are left out of training and counted in the summary.
        threads: how many images are decoded at once. None: as many as there are cores, and four.

    Returns:
        What each split holds, in the order in which they were given.

    Raises:
        DatasetError: all problems of all splits, with file and id each.
    """
    problems: list[Problem] = []
    summaries = []
    with ThreadPoolExecutor(threads or (os.cpu_count() or 1) + 4) as pool:
        for images_dir, annotation_file in splits:
            annotations, found = examine_annotations(annotation_file, class_names, invalid_boxes)
            problems += found
            problems += _image_problems(Path(images_dir), annotations, pool)
            if class_names is None and annotations.class_names:
                class_names = annotations.class_names
            summaries.append(
                SplitSummary(
                    annotation_file=annotations.file,
                    class_names=annotations.class_names,
                    images=len(annotations.file_names),
                    boxes=len(annotations.boxes),
                    crowd_boxes=annotations.crowd_boxes,
                    dropped_boxes=annotations.dropped_boxes,
                )
            )
    if problems:
        raise dataset_error(problems)
    return summaries


def _image_problems(images_dir: Path, annotations: Annotations, pool: ThreadPoolExecutor) -> list[Problem]:
    if not images_dir.is_dir():
        return [Problem(Kind.IMAGE_MISSING, annotations.file, f"the image folder {images_dir} does not exist")]
    paths = [images_dir / name for name in annotations.file_names]
    sizes = [(int(width), int(height)) for width, height in annotations.sizes]
    problems = []
    for image_id, name, found in zip(
        annotations.image_ids, annotations.file_names, pool.map(image_problem, paths, sizes), strict=True
    ):
        if found is not None:
            kind, detail = found
            problems.append(Problem(kind, annotations.file, f"image {image_id} ({name}): {detail}"))
    return problems
