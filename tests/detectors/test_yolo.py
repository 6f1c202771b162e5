from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import ExifTags, Image

from detectors.data.checks import check_dataset
from detectors.data.coco import CocoDataset
from detectors.data.layout import Split, locate_split, locate_splits
from detectors.data.problems import DatasetError, Kind
from detectors.data.yolo_yaml import read_class_list, read_data_yaml
from detectors.evaluation import CocoEvaluator
from vfmdistill.errors import InputError

LABELS = {"a": "0 0.5 0.5 0.5 0.5\n\n2 0.25 0.5 0.125 0.25\n", "b": None, "c": ""}


def pictures(folder: Path, names: Any = LABELS, size: tuple[int, int] = (40, 32)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")


def labels(folder: Path, texts: dict[str, str | None] = LABELS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        if text is not None:
            (folder / f"{name}.txt").write_text(text)


def data_set(root: Path, folder: str = "images/train", label_folder: str = "labels/train", **content: Any) -> Path:
    pictures(root / folder)
    labels(root / label_folder)
    content = {"train": folder, "val": folder, "names": ["cat", "dog", "zebra"]} | content
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root


def problems(split: Split) -> list[tuple[Kind, str]]:
    with pytest.raises(DatasetError) as caught:
        check_dataset(split)
    return [(problem.kind, problem.detail) for problem in caught.value.problems]


def boxes(split: Split) -> list[list[float]]:
    return [box for _, target in CocoDataset(*split) for box in target["boxes"].tolist()]


@pytest.mark.parametrize(
    ("images", "annotations"),
    [("images/train", "labels/train"), ("train/images", "train/labels"), ("train", "train")],
)
def test_reads_what_ultralytics_writes(tmp_path: Path, images: str, annotations: str) -> None:
    split = locate_split(data_set(tmp_path, images, annotations), "train")
    assert split == (tmp_path / images, tmp_path / "data.yaml")
    data = CocoDataset(*split)
    assert data.class_names == ["cat", "dog", "zebra"]
    assert data.category_ids == [0, 1, 2]
    assert data.annotation_file == tmp_path / annotations
    assert data.images_dir == tmp_path / images
    image, target = data[0]
    assert image.shape == (3, 32, 40)
    assert target["boxes"].tolist() == [[10, 8, 30, 24], [7.5, 12, 12.5, 20]]
    assert target["labels"].tolist() == [0, 2]
    assert [data[i][1]["labels"].tolist() for i in (1, 2)] == [[], []]
    assert [int(data[i][1]["image_id"]) for i in range(3)] == [1, 2, 3]
    (summary,) = check_dataset(split)
    assert (summary.images, summary.boxes) == (3, 2)


def test_the_ground_truth_is_one_for_the_evaluator(tmp_path: Path) -> None:
    data = CocoDataset(*locate_split(data_set(tmp_path), "train"))
    evaluator = CocoEvaluator(data.ground_truth(), data.category_ids)
    for _, target in data:
        found = {"scores": torch.ones(len(target["labels"])), "labels": target["labels"], "boxes": target["boxes"]}
        evaluator.process([int(target["image_id"])], [found])
    assert evaluator.evaluate()["AP"] == pytest.approx(1)
    assert evaluator.per_class() == {"cat": pytest.approx(1), "dog": -1, "zebra": pytest.approx(1)}


def test_polygons_become_their_bounding_boxes(tmp_path: Path) -> None:
    split = locate_split(data_set(tmp_path), "train")
    labels(tmp_path / "labels/train", {"a": "1 0.25 0.5 0.75 0.25 0.5 0.75\n1.0 0.1 0.1 0.2 0.1 0.2 0.2 0.1 0.2"})
    assert np.allclose(boxes(split), [[10, 8, 30, 24], [4, 3.2, 8, 6.4]])


def test_keypoints_are_passed_over_where_they_are_announced(tmp_path: Path) -> None:
    line = {"a": "1 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 2"}
    split = locate_split(data_set(tmp_path, kpt_shape=[2, 3]), "train")
    labels(tmp_path / "labels/train", line)
    assert boxes(split) == [[10, 8, 30, 24]]


def test_fractions_are_of_the_upright_picture(tmp_path: Path) -> None:
    split = locate_split(data_set(tmp_path), "train")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(tmp_path / "images/train/a.png").save(tmp_path / "images/train/a.png", exif=exif)
    data = CocoDataset(*split)
    assert data[0][0].shape == (3, 40, 32)
    assert data[0][1]["boxes"][0].tolist() == [8, 10, 24, 30]
    truth = data.ground_truth()
    assert truth["annotations"][0]["bbox"] == [8, 10, 16, 20]
    assert (truth["images"][0]["width"], truth["images"][0]["height"]) == (32, 40)
    check_dataset(split)
    # Turned by 180° the size tells nothing, and the boxes stay all the same.
    exif[ExifTags.Base.Orientation] = 3
    Image.open(tmp_path / "images/train/b.png").save(tmp_path / "images/train/b.png", exif=exif)
    labels(tmp_path / "labels/train", {"b": "0 0.25 0.25 0.5 0.5"})
    data = CocoDataset(*split)
    assert data[1][1]["boxes"].tolist() == [[0, 0, 20, 16]]
    assert data.ground_truth()["annotations"][-1]["bbox"] == [0, 0, 20, 16]


def test_everything_is_named_with_file_and_line(tmp_path: Path) -> None:
    root = data_set(tmp_path)
    labels(
        root / "labels/train",
        {
            "a": "0 0.5 0.5 0.5 0.5\n7 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1\n0.5 0.5 0.5 0.1 0.1\nx 0.5 0.5 0.1 0.1",
            "b": "1 0.95 0.5 0.3 0.1\n1 0.5 0.5 0 0.1\n1 0.5 0.5 -0.1 0.1\n1 nan 0.5 0.1 0.1\n-1 0.5 0.5 0.1 0.1",
            "c": "0 200 100 30 20",
        },
    )
    (root / "images/train/d.png").write_bytes(b"no picture")
    (root / "labels/train/e.txt").write_bytes(b"\xff\xfe")
    pictures(root / "images/train", ["e"])
    found = problems(locate_split(root, "train"))
    file = root / "labels/train"
    expected = "expected a class index and a box (4 numbers) or a polygon (2 for each corner)"
    assert found[:3] == [
        (Kind.UNKNOWN_CATEGORY, f"{file}/a.txt:2: there is no class 7"),
        (Kind.MALFORMED, f"{file}/a.txt:3: 4 numbers; {expected}"),
        (Kind.MALFORMED, f"{file}/a.txt:4: 0.5 is no class index"),
    ]
    assert [(kind, detail.split(": ")[0].removeprefix(f"{file}/")) for kind, detail in found[3:]] == [
        (Kind.MALFORMED, "a.txt:5"),
        (Kind.UNKNOWN_CATEGORY, "b.txt:5"),
        (Kind.IMAGE_UNREADABLE, "image 4 (d.png)"),
        (Kind.MALFORMED, "e.txt"),
        (Kind.BOX_OUTSIDE, "labels/train/b.txt:1 (b.png, 40 × 32)"),
        (Kind.BOX_WITHOUT_AREA, "labels/train/b.txt:2 (b.png, 40 × 32)"),
        (Kind.BOX_INVERTED, "labels/train/b.txt:3 (b.png, 40 × 32)"),
        (Kind.BOX_NOT_FINITE, "labels/train/b.txt:4 (b.png, 40 × 32)"),
        (Kind.BOX_OUTSIDE, "labels/train/c.txt:1 (c.png, 40 × 32)"),
    ]
    with pytest.raises(DatasetError, match=f"{file}: malformed annotations"):
        CocoDataset(*locate_split(root, "train"))


def test_a_split_without_labels_is_empty(tmp_path: Path) -> None:
    root = data_set(tmp_path, label_folder="elsewhere")
    assert problems(locate_split(root, "train")) == [(Kind.EMPTY, "3 usable images, 0 usable boxes")]


def test_several_folders_and_lists_make_up_a_split(tmp_path: Path) -> None:
    root = data_set(tmp_path, train=["images/one", "images/two"], val="val.txt")
    pictures(root / "images/one", ["a", "b"])
    pictures(root / "images/two", ["a", "c"])
    labels(root / "labels/one", {"a": "0 0.5 0.5 0.5 0.5"})
    labels(root / "labels/two", {"a": "1 0.5 0.5 0.25 0.5", "c": "2 0.5 0.5 0.5 0.25"})
    (root / "val.txt").write_text("./images/two/c.png\n\nimages/one/a.png\n./images/two/gone.png\n")
    data = CocoDataset(*locate_split(root, "train"))
    assert [data[i][1]["labels"].tolist() for i in range(4)] == [[0], [], [1], [2]]
    split = locate_split(root, "val")
    assert split.images_dir == root / "val.txt"
    assert [(kind, detail.split(":")[0]) for kind, detail in problems(split)] == [
        (Kind.IMAGE_MISSING, "image 3 (images/two/gone.png)")
    ]
    (root / "val.txt").write_text("./images/two/c.png\nimages/one/a.png\n")
    data = CocoDataset(*split)
    assert [data[i][1]["labels"].tolist() for i in range(2)] == [[2], [0]]
    assert data.annotation_file == root / "val.txt"


def test_paths_of_another_machine_and_of_roboflow(tmp_path: Path) -> None:
    root = data_set(tmp_path / "set", "train/images", "train/labels", path="/nowhere", train="../train/images")
    assert locate_split(root, "train").images_dir == root / "train/images"
    assert locate_split(root / "data.yaml", "train") == locate_split(root, "train")
    other = data_set(tmp_path / "other", path="../set", train="train/images")
    assert locate_split(other, "train") == (root / "train/images", other / "data.yaml")
    assert len(CocoDataset(*locate_split(other, "train"))[0][1]["labels"]) == 2


def test_a_folder_above_may_be_called_images_too(tmp_path: Path) -> None:
    root = data_set(tmp_path / "images" / "set", "train", "train")
    assert len(boxes(locate_split(root, "train"))) == 2


def test_names_as_a_mapping_may_have_gaps(tmp_path: Path) -> None:
    root = data_set(tmp_path, names={2: "zebra", 0: "cat", 5: 7})
    data = CocoDataset(*locate_split(root, "train"))
    assert data.class_names == ["cat", "zebra", "7"]
    assert data.category_ids == [0, 2, 5]
    assert data[0][1]["labels"].tolist() == [0, 1]


def test_classes_txt_takes_the_place_of_the_yaml(tmp_path: Path) -> None:
    for images, label_folder in (("images/val", "labels/val"), ("valid/images", "valid/labels")):
        root = tmp_path / images[0]
        pictures(root / images)
        labels(root / label_folder)
        (root / "classes.txt").write_text("cat\nblack dog\nzebra\n")
        split = locate_split(root, "val")
        assert split == (root / images, root / "classes.txt")
        assert CocoDataset(*split).class_names == ["cat", "black dog", "zebra"]
        assert len(boxes(split)) == 2


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[1]", "holds a list where keys and values are expected"),
        ("a: [", "cannot be read as YAML"),
        ("train: images", "`names` is missing"),
        ("names: [yes, cat]", "class 0 is called True, which YAML takes for no text: put it in quotes"),
        ("names: {a: cat}", "`names` has the class index 'a'"),
        ("names: [cat]\nnc: 2", "`nc` is 2, and `names` has 1"),
        ("names: [cat]\ntrain: 3", "`train` is 3; expected a folder"),
        ("names: [cat]\ntrain: [a, b]\nval: [a]", "`train` and `val` begin with the same folder"),
    ],
)
def test_a_faulty_yaml_is_explained(tmp_path: Path, text: str, fault: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert any(fault in each for each in read_data_yaml(tmp_path / "data.yaml").faults)
    if "train" not in text:
        with pytest.raises(InputError) as caught:
            locate_split(tmp_path, "train")
        assert fault in str(caught.value) or "it has no `train`" in str(caught.value)
    else:
        (tmp_path / "images").mkdir()
        with pytest.raises(DatasetError) as caught:
            check_dataset((tmp_path / "images", tmp_path / "data.yaml"))
        assert fault in str(caught.value)


def test_an_empty_line_among_the_classes_is_named(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n\n")
    assert read_class_list(tmp_path / "classes.txt").faults == ["line 2 is empty"]


def test_what_is_missing_is_listed(tmp_path: Path) -> None:
    root = data_set(tmp_path, val="images/val")
    with pytest.raises(InputError) as caught:
        locate_split(root, "val")
    assert "YOLO: data.yaml (found) with images/val/ (missing)" in str(caught.value)
    with pytest.raises(InputError, match=r"data\.yaml \(found\): it has no `test`"):
        locate_split(root, "test")
    assert list(locate_splits(root)) == ["train"]
    with pytest.raises(InputError, match="no train split"):
        locate_splits(tmp_path / "images")
