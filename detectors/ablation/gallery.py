"""Gallery: the pictures of an ablation's report, from the trained detectors in its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

import detectors
from detectors.data.coco import CocoDataset
from detectors.data.layout import locate_split
from detectors.data.transforms import eval_transform
from detectors.detector_config import CONFIG
from detectors.predictor import Predictor
from detectors.training.recipe import Recipe
from detectors.training.snapshot import PRETRAINED
from detectors.training.teaching import build_teachers
from vfmdistill.errors import DistillError, InputError

from .arms import Arm
from .findings import Findings
from .pictures import Example, Picture, detection_pictures, feature_picture
from .probe_features import evenly, tap_reader
from .record import AblationRecord, TrialRecord

THRESHOLD = 0.4  # lowest score of a detection that is shown
_IMAGES = 4  # whose features are shown


def gallery(
    record: AblationRecord,
    findings: Findings,
    root: Path,
    *,
    reference: str | None = None,
    say: Callable[[str], object] = print,
) -> list[Picture]:
    """Return pictures of an arm beside its baseline: features with the teacher's, and detections that changed.

    They are made from the smallest seed that both have and whose trained detectors, those of the best epoch, lie in the
    folder. Why there are no pictures is said.

    Args:
        record: the ablation.
        findings: what it found.
        root: folder of the ablation.
        reference: the arm; None takes the method with the largest mean difference.
        say: called with a sentence.

    Raises:
        InputError: `reference` is no arm with a teacher.
    """
    check_reference(record.arms, reference)
    chosen = _chosen(record, findings, reference)
    if chosen is None:
        say("no pictures: no arm with a teacher shares a seed with its baseline.")
        return []
    pair = _pair(record, *chosen, root)
    if pair is None:
        say(f"no pictures: {root} holds no seed of both {chosen[0]} and {chosen[1]} with its trained detectors.")
        return []
    try:
        return [*_features(pair, root), *_detections(pair, root)]
    except (DistillError, OSError, ValidationError) as error:
        say(f"no pictures: {error}")
        return []


def check_reference(arms: Sequence[Arm], reference: str | None) -> None:
    """Raise an InputError if `reference` is neither None nor an arm with a teacher."""
    taught = [arm.name for arm in arms if arm.baseline is not None]
    if reference is not None and reference not in taught:
        raise InputError(f"there is no arm {reference!r} with a teacher; expected one of {', '.join(taught)}.")


def _chosen(record: AblationRecord, findings: Findings, reference: str | None) -> tuple[str, str] | None:
    """Return the names of the baseline and of the arm beside it."""
    by_arm = {contrast.arm: contrast for contrast in findings.contrasts}
    kinds = {arm.name: arm.kind for arm in record.arms}
    methods = [contrast for contrast in findings.contrasts if kinds[contrast.arm] == "method"]
    best = max(methods, key=lambda contrast: contrast.differences["AP"].mean, default=None)
    contrast = by_arm.get(reference) if reference is not None else best
    return None if contrast is None else (contrast.other, contrast.arm)


def _pair(record: AblationRecord, first: str, second: str, root: Path) -> tuple[TrialRecord, TrialRecord] | None:
    runs = {(run.arm, run.seed): run for run in record.records if (root / run.folder / PRETRAINED / CONFIG).is_file()}
    seeds = sorted(seed for arm, seed in runs if arm == first and (second, seed) in runs)
    return (runs[first, seeds[0]], runs[second, seeds[0]]) if seeds else None


@torch.no_grad()
def _features(pair: tuple[TrialRecord, TrialRecord], root: Path) -> list[Picture]:
    recipe = Recipe.model_validate(pair[1].recipe)
    size = recipe.input_size
    data = _validation(recipe, size)
    images = torch.stack([data[index][0].as_subclass(Tensor) for index in evenly(len(data), _IMAGES)])
    students = {}
    for run in pair:
        with tap_reader(_open(run, root), recipe.tap) as reader:
            students[run.arm] = reader(images).float()
    grid = next(iter(students.values())).shape[-2:]
    plainly = {"teacher_precision": "fp32", "teacher_cache": None}
    teachers = build_teachers(recipe.model_copy(update=plainly))
    maps = {f"teacher {teacher.spec.name}": teacher(images, (grid[0], grid[1])).map for teacher in teachers}
    return [feature_picture(list(images), maps | students)]


def _detections(pair: tuple[TrialRecord, TrialRecord], root: Path) -> list[Picture]:
    recipe = Recipe.model_validate(pair[1].recipe)
    data = _validation(recipe, None)
    first, second = (
        Predictor(_open(run, root), input_size=recipe.input_size, threshold=THRESHOLD, deploy=False) for run in pair
    )

    def examples() -> Iterator[Example]:
        for index in range(len(data)):
            image, target = data.load(index)
            pixels = image.as_subclass(Tensor)
            found = [
                {"scores": each.scores, "labels": each.labels, "boxes": each.boxes}
                for each in (first(pixels), second(pixels))
            ]
            yield Example(pixels, {"labels": target["labels"], "boxes": target["boxes"].as_subclass(Tensor)}, *found)

    return detection_pictures(examples(), (pair[0].arm, pair[1].arm), data.class_names, THRESHOLD)


def _open(run: TrialRecord, root: Path) -> detectors.Detector:
    return detectors.from_pretrained(root / run.folder / PRETRAINED).eval()


def _validation(recipe: Recipe, size: tuple[int, int] | None) -> CocoDataset:
    if recipe.data is None:
        raise InputError("the recipe names no data set.")
    return CocoDataset(
        *locate_split(recipe.data, "val"),
        None if size is None else eval_transform(size),
        invalid_boxes=recipe.invalid_boxes,
    )
