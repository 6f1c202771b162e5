from __future__ import annotations

from pathlib import Path

import pytest

from detectors.data.layout import locate_split, locate_splits
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
    assert "YOLO: data.yaml (missing)" in message
    assert (
        "Pascal VOC: JPEGImages/ (missing) with Annotations/ (missing) with ImageSets/Main/val.txt (missing)" in message
    )
    # What is there in part comes first.
    lines = message.splitlines()[1:]
    assert [("(found)" in line) for line in lines] == sorted((("(found)" in line) for line in lines), reverse=True)


def test_coco_comes_before_yolo_where_both_are_there(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "data.yaml").write_text("names: [cat]\ntrain: images\nval: images\n")
    (tmp_path / "instances_train.json").write_text("{}")
    assert locate_split(tmp_path, "train").annotation_file.name == "instances_train.json"
    assert locate_split(tmp_path, "val").annotation_file.name == "data.yaml"
    assert list(locate_splits(tmp_path)) == ["train", "val"]


def test_a_yaml_file_of_another_purpose_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("learning_rate: 3\n")
    with pytest.raises(InputError, match=r"YOLO: settings\.yaml \(found\): `names` is missing"):
        locate_split(tmp_path, "train")


def test_unknown_split_and_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="nearest: val"):
        locate_split(tmp_path, "vall")
    with pytest.raises(InputError, match="does not exist"):
        locate_split(tmp_path / "nowhere", "val")
    (tmp_path / "data.zip").touch()
    with pytest.raises(InputError, match="no YAML file that describes a YOLO data set"):
        locate_split(tmp_path / "data.zip", "val")
