from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from detectors.confusion import Confusion, Mistake
from vfmdistill.errors import InputError

NAMES = ["cat", "dog"]
LEFT, RIGHT, FAR = [0.0, 0, 10, 10], [20.0, 0, 30, 10], [50.0, 50, 60, 60]


def truth(*objects: tuple[int, list[float]]) -> dict[str, Tensor]:
    labels, boxes = zip(*objects, strict=True) if objects else ((), ())
    return {"labels": torch.tensor(labels, dtype=torch.int64), "boxes": torch.tensor(boxes).view(-1, 4)}


def found(*objects: tuple[float, int, list[float]]) -> dict[str, Tensor]:
    scores = torch.tensor([each[0] for each in objects])
    return {"scores": scores, **truth(*(each[1:] for each in objects))}


def matrix(true: dict[str, Tensor], detected: dict[str, Tensor], **settings: Any) -> list[list[int]]:
    crowd = settings.pop("crowd", None)
    confusion = Confusion(NAMES, **settings)
    confusion.add(true, detected, crowd)
    result: list[list[int]] = confusion.matrix.tolist()
    return result


def test_rows_are_true_classes_and_columns_are_what_was_found() -> None:
    true = truth((0, LEFT), (1, RIGHT), (1, FAR))
    detected = found((0.9, 0, LEFT), (0.8, 0, RIGHT), (0.7, 1, [80.0, 80, 90, 90]))
    assert matrix(true, detected) == [[1, 0, 0], [1, 0, 1], [0, 1, 0]]


def test_the_surest_detection_chooses_first_and_a_second_one_is_made_up() -> None:
    true = truth((0, LEFT))
    assert matrix(true, found((0.6, 0, LEFT), (0.9, 1, LEFT))) == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_a_detection_takes_the_object_that_it_overlaps_most_whatever_the_class() -> None:
    true = truth((0, [0.0, 0, 10, 10]), (1, [2.0, 0, 12, 10]))
    assert matrix(true, found((0.9, 0, [2.0, 0, 12, 10]))) == [[0, 0, 1], [1, 0, 0], [0, 0, 0]]
    # Once that one is taken, the next detection gets the other.
    both = found((0.9, 1, [2.0, 0, 12, 10]), (0.8, 0, [2.0, 0, 12, 10]))
    assert matrix(true, both) == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_thresholds_are_inclusive() -> None:
    half = [0.0, 0, 5, 10]  # IoU 0.5 with LEFT
    assert matrix(truth((0, LEFT)), found((0.5, 0, half))) == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert matrix(truth((0, LEFT)), found((0.5, 0, half)), iou=0.51) == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert matrix(truth((0, LEFT)), found((0.5, 0, half)), threshold=0.51) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_images_without_objects_or_without_detections() -> None:
    assert matrix(truth(), found((0.9, 1, LEFT))) == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert matrix(truth((1, LEFT)), found()) == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert matrix(truth(), found()) == [[0] * 3] * 3


def test_what_lies_in_a_crowd_counts_only_where_it_finds_an_object() -> None:
    crowd = torch.tensor([[0.0, 0, 40, 10]])
    detected = found((0.9, 0, LEFT), (0.8, 1, RIGHT), (0.7, 1, [35.0, 0, 45, 10]), (0.6, 0, [36.0, 0, 46, 10]))
    # The third lies in it by one half, the fourth by less.
    assert matrix(truth((0, LEFT)), detected, crowd=crowd) == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert matrix(truth((0, LEFT)), detected) == [[1, 0, 0], [0, 0, 0], [1, 2, 0]]


def test_counts_add_up_over_many_random_images() -> None:
    generator = torch.Generator().manual_seed(0)
    confusion, objects, sure = Confusion(NAMES, threshold=0.3), torch.zeros(2, dtype=torch.int64), 0
    for _ in range(20):
        corners = torch.rand(7, 2, generator=generator) * 20
        boxes = torch.cat([corners, corners + 10], 1)
        labels = torch.randint(2, (7,), generator=generator)
        scores = torch.rand(7, generator=generator)
        moved = boxes + torch.randn(7, 4, generator=generator)
        confusion.add(
            {"labels": labels, "boxes": boxes}, {"scores": scores, "labels": labels.flip(0), "boxes": moved.flip(0)}
        )
        objects += labels.bincount(minlength=2)
        sure += int((scores >= 0.3).sum())
    assert confusion.matrix.sum(1)[:2].tolist() == objects.tolist()
    assert int(confusion.matrix[:, :2].sum()) == sure
    assert confusion.matrix[2, 2] == 0
    assert confusion.matrix.diagonal().sum() > 10


def test_lists_the_most_frequent_mistakes_with_their_share() -> None:
    confusion = Confusion(NAMES)
    confusion.matrix = torch.tensor([[5, 0, 3], [4, 6, 0], [1, 0, 0]])
    assert confusion.most_frequent() == [
        Mistake("dog", "cat", 4, 0.4),  # of 10 dogs
        Mistake("cat", "background", 3, 0.375),  # of 8 cats
        Mistake("background", "cat", 1, 0.1),  # of 10 detections of cats
    ]
    assert confusion.most_frequent(1) == [Mistake("dog", "cat", 4, 0.4)]
    assert Confusion(NAMES).most_frequent() == []


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match="and iou 0; expected"):
        Confusion(NAMES, iou=0)
    with pytest.raises(InputError, match="threshold is 2"):
        Confusion(NAMES, threshold=2)
