from __future__ import annotations

import json
from pathlib import Path

from support.growing_data import DataSet, findings, sound

from detectors.data.doctor import examine


def test_classes(tmp_path: Path) -> None:
    data = DataSet(tmp_path, (1, "cat"), (2, "dog"), (4, "cow"), (5, "fox"), (9, "elk"))
    for i in range(10):
        data.add("train", f"{i}.png", (1, 3, i, 20, 10))
    data.add("train", "train.png", (2, 3, 3, 20, 20), (4, 3, 3, 20, 20))
    data.add("val", "val.png", (1, 3, 3, 20, 20), (2, 3, 3, 20, 20), (5, 3, 3, 20, 20), (5, 30, 3, 20, 20))
    report = examine(data.write())
    assert findings(report) == {
        ("class_untrained", "train"): ["fox: 2 in val"],
        ("class_few", "train"): ["dog: 1", "cow: 1"],
        ("class_unmeasured", "val"): ["cow: 1 in train"],
        ("class_empty", "train + val"): ["elk"],
        ("category_gaps", "train + val"): ["none between 2 and 4", "none between 5 and 9"],
    }
    assert report.status() == 0
    assert report.status(strict=True) == 1


def test_category_ids_that_differ_between_splits(tmp_path: Path) -> None:
    root = sound(tmp_path).write(val=((2, "cat"), (5, "dog")))
    content = json.loads((root / "instances_val.json").read_text())
    content["annotations"][0]["category_id"] = 5
    (root / "instances_val.json").write_text(json.dumps(content))
    report = examine(root)
    assert findings(report) == {
        ("category_ids", "train + val"): ["cat: 1 in train, 2 in val", "dog: 2 in train, 5 in val"],
        ("category_gaps", "val"): ["none between 2 and 5"],
    }
    assert report.status() == 1


def test_classes_that_differ_between_splits(tmp_path: Path) -> None:
    report = examine(sound(tmp_path).write(val=((1, "cat"), (2, "wolf"))))
    assert findings(report) == {
        ("classes", "val"): ["expected but not in the file: dog", "in the file but not expected: wolf"],
        ("class_untrained", "train"): ["wolf: 1 in val"],
        ("class_unmeasured", "val"): ["dog: 10 in train"],
    }
