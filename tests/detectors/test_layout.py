from __future__ import annotations

from pathlib import Path

import pytest

from detectors.data.layout import locate_split
from vfmdistill.errors import InputError, UnknownNameError


@pytest.mark.parametrize(
    ("images", "annotations", "split"),
    [
        ("images", "instances_train.json", "train"),
        ("images", "instances_val.json", "val"),
        ("train2017", "annotations/instances_train2017.json", "train"),
        ("val2017", "annotations/instances_val2017.json", "val"),
        ("images/val2017", "annotations/instances_val2017.json", "val"),
        ("images/val", "annotations/instances_val.json", "val"),
        ("images", "annotations/instances_train.json", "train"),
        ("train", "annotations/instances_train.json", "train"),
        ("train", "train/_annotations.coco.json", "train"),
        ("valid", "valid/_annotations.coco.json", "val"),
        ("val", "val/_annotations.coco.json", "val"),
    ],
)
def test_finds_each_layout(tmp_path: Path, images: str, annotations: str, split: str) -> None:
    (tmp_path / images).mkdir(parents=True)
    (tmp_path / annotations).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / annotations).write_text("{}")
    assert locate_split(tmp_path, split) == (tmp_path / images, tmp_path / annotations)


def test_lists_what_it_looked_for(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError) as caught:
        locate_split(tmp_path, "val")
    message = str(caught.value)
    assert "images/ (found) with instances_val.json (missing)" in message
    assert "val2017/ (missing) with annotations/instances_val2017.json (missing)" in message
    assert "valid/_annotations.coco.json" in message


def test_unknown_split_and_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="nearest: val"):
        locate_split(tmp_path, "vall")
    with pytest.raises(InputError, match="does not exist"):
        locate_split(tmp_path / "nowhere", "val")
