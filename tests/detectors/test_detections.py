from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.detections import Detection, Detections
from vfmdistill.errors import InputError, UnknownNameError


def detections(**changes: Any) -> Detections:
    content: dict[str, Any] = {
        "scores": torch.tensor([0.75, 0.5, 0.25]),
        "labels": torch.tensor([2, 0, 2]),
        "boxes": torch.tensor([[1.0, 2, 4, 8], [10, 10, 20, 20], [0.5, 0, 30, 30]]),
        "size": (40, 60),
        "class_names": ["cat", "dog", "zebra"],
        "category_ids": [7, 13, 90],
    }
    return Detections(**{**content, **changes})


def test_knows_its_names_and_yields_one_object_after_the_other() -> None:
    found = detections()
    assert found.names == ["zebra", "cat", "zebra"]
    assert len(found) == 3
    assert next(iter(found)) == Detection(0.75, 2, "zebra", (1.0, 2.0, 4.0, 8.0))
    assert [each.label for each in found] == [2, 0, 2]
    assert repr(found) == "Detections(3 in 40 × 60: zebra 0.75, cat 0.50, zebra 0.25)"


def test_many_or_no_objects_are_told_briefly() -> None:
    many = detections(scores=torch.ones(8), labels=torch.ones(8, dtype=torch.int64), boxes=torch.zeros(8, 4))
    assert repr(many).endswith("dog 1.00, and 3 more)")
    none = many.filter(classes=["cat"])
    assert (len(none), list(none), none.names, none.to_coco(1)) == (0, [], [], [])
    assert repr(none) == "Detections(0 in 40 × 60)"


def test_filters_by_score_and_by_class() -> None:
    found = detections()
    assert found.filter(0.5).scores.tolist() == [0.75, 0.5]
    assert found.filter(classes=["zebra"]).scores.tolist() == [0.75, 0.25]
    assert found.filter(classes="zebra").scores.tolist() == [0.75, 0.25]
    assert found.filter(0.3, classes=[0, "zebra"]).names == ["zebra", "cat"]
    assert found.filter(classes=[]).names == []
    kept = found.filter(0.3, classes=["cat"])
    assert (kept.boxes.tolist(), kept.size, kept.category_ids) == ([[10, 10, 20, 20]], (40, 60), [7, 13, 90])
    assert len(found) == 3
    with pytest.raises(UnknownNameError, match="unknown class 'zebro'; nearest: zebra"):
        found.filter(classes=["zebro"])
    with pytest.raises(UnknownNameError, match="unknown class '3'"):
        found.filter(classes=[3])


def test_coco_results_have_the_category_ids_and_corner_and_size() -> None:
    results = detections().to_coco(5)
    assert results[0] == {"image_id": 5, "category_id": 90, "bbox": [1.0, 2.0, 3.0, 6.0], "score": 0.75}
    assert [result["category_id"] for result in results] == [90, 7, 90]
    assert results[2]["bbox"] == [0.5, 0.0, 29.5, 30.0]
    json.dumps(results)


def test_category_ids_are_never_guessed() -> None:
    found = detections(category_ids=None)
    with pytest.raises(InputError, match=r"does not know the category ids .* for example range\(3\)"):
        found.to_coco(1)
    assert [result["category_id"] for result in found.to_coco(1, range(3))] == [2, 0, 2]


def test_draws_on_a_copy_of_the_picture_that_was_looked_at() -> None:
    array = np.full((40, 60, 3), 200, dtype=np.uint8)
    drawn = detections().draw(array)
    assert isinstance(drawn, Image.Image)
    assert drawn.size == (60, 40)
    assert (np.asarray(drawn) != array).any()
    assert (array == 200).all()
    unit = torch.full((3, 40, 60), 200 / 255)
    assert np.array_equal(np.asarray(detections().draw(unit)), np.asarray(drawn))
    with pytest.raises(InputError, match="picture is 60 × 40, the detections are of one of 40 × 60"):
        detections().draw(np.zeros((60, 40, 3), dtype=np.uint8))


def test_parts_that_do_not_fit_together() -> None:
    with pytest.raises(InputError, match=r"\(K,\), \(K,\), \(K, 4\); got \[\(2,\), \(3,\), \(3, 4\)\]"):
        detections(scores=torch.ones(2))
    with pytest.raises(InputError, match=r"labels \[0, 3\] go beyond 3 names"):
        detections(labels=torch.tensor([0, 3, 0]))
    with pytest.raises(InputError, match="2 category ids for 3 classes"):
        detections(category_ids=[1, 2])
