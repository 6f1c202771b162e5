from __future__ import annotations

import torch
from torch import Tensor

from detectors.ablation.changes import Changes, changes

BOXES = [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]]
TRUTH = {"labels": torch.tensor([0, 1, 2]), "boxes": torch.tensor(BOXES)}


def detections(*found: tuple[float, int, list[float]]) -> dict[str, Tensor]:
    return {
        "scores": torch.tensor([score for score, _, _ in found]),
        "labels": torch.tensor([label for _, label, _ in found], dtype=torch.int64),
        "boxes": torch.tensor([box for _, _, box in found]).reshape(-1, 4),
    }


def test_objects_that_one_alone_finds() -> None:
    first = detections((0.9, 0, BOXES[0]), (0.8, 1, BOXES[1]))
    second = detections((0.9, 1, BOXES[1]), (0.8, 2, BOXES[2]))
    assert changes(TRUTH, first, second, 0.4) == Changes(found=(2,), lost=(0,))
    assert changes(TRUTH, second, first, 0.4) == Changes(found=(0,), lost=(2,))


def test_a_score_below_the_threshold_finds_nothing_and_is_not_wrong() -> None:
    second = detections((0.41, 0, BOXES[0]), (0.39, 1, BOXES[1]), (0.39, 1, BOXES[2]))
    assert changes(TRUTH, detections(), second, 0.4) == Changes(found=(0,))


def test_a_wrong_class_and_a_box_that_is_off_are_wrong() -> None:
    second = detections((0.9, 1, BOXES[0]), (0.8, 1, [25.1, 0.0, 35.1, 10.0]))  # an IoU of 4.9 / 15.1
    assert changes(TRUTH, detections(), second, 0.4) == Changes(wrong=(0, 1))


def test_the_surest_takes_the_object_and_the_other_one_is_wrong() -> None:
    second = detections((0.5, 0, BOXES[0]), (0.9, 0, [1.0, 0.0, 10.0, 10.0]))
    assert changes(TRUTH, detections(), second, 0.4) == Changes(found=(0,), wrong=(0,))


def test_what_both_get_wrong_is_no_change() -> None:
    both = (0.9, 1, BOXES[0])
    first = detections(both, (0.8, 2, BOXES[0]))
    second = detections((0.5, 1, [0.0, 0.0, 10.0, 9.0]), (0.8, 2, [60.0, 0.0, 70.0, 10.0]))
    assert changes(TRUTH, first, second, 0.4) == Changes(wrong=(1,), righted=(1,))


def test_images_without_objects_or_detections() -> None:
    empty = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
    assert changes(empty, detections(), detections((0.9, 0, BOXES[0])), 0.4) == Changes(wrong=(0,))
    assert changes(TRUTH, detections(), detections(), 0.4) == Changes()
