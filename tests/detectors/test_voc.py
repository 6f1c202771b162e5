from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from detectors.data.checks import check_dataset
from detectors.data.coco import CocoDataset
from detectors.data.formats import read_content
from detectors.data.layout import Split, locate_split, locate_splits
from detectors.data.problems import DatasetError, Kind
from detectors.data.voc_xml import parse_xml
from detectors.evaluation import CocoEvaluator
from vfmdistill.errors import InputError

CAT = ("cat", (11, 9, 30, 24), 0)
DOG = ("dog", (1, 1, 40, 32), 0)
HARD = ("cat", (1, 1, 8, 8), 1)


def picture(path: Path, size: tuple[int, int] = (40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def annotation(path: Path, *objects: Any, size: str = "<width>40</width><height>32</height><depth>3</depth>") -> None:
    """Write the annotation of a picture; objects are (class, corners, difficult)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["<annotation>", f"<filename>{path.stem}.jpg</filename>", f"<size>{size}</size>"]
    for name, corners, difficult in objects:
        numbers = "".join(
            f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
        )
        # Parts of an object have names and boxes of their own.
        part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
        lines.append(
            f"<object>{part}<name>{name}</name><difficult>{difficult}</difficult><bndbox>{numbers}</bndbox></object>"
        )
    path.write_text("\n".join([*lines, "</annotation>"]))


def devkit(root: Path) -> Path:
    """Write a data set with the pictures a and b in train and c in val, which alone shows a zebra."""
    for name, objects in {"a": [CAT, DOG], "b": [HARD], "c": [("zebra", (3, 3, 9, 9), 0)]}.items():
        picture(root / "JPEGImages" / f"{name}.jpg")
        annotation(root / "Annotations" / f"{name}.xml", *objects)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\na  1\n\n")
    (lists / "val.txt").write_text("c\n")
    (lists / "trainval.txt").write_text("a\nb\nc\n")
    return root


def problems(*splits: Split) -> list[tuple[Kind, str]]:
    with pytest.raises(DatasetError) as caught:
        check_dataset(*splits)
    return [(problem.kind, problem.detail) for problem in caught.value.problems]


@pytest.mark.parametrize("inside", [".", "VOC2012", "VOCdevkit/VOC2007"])
def test_reads_a_devkit(tmp_path: Path, inside: str) -> None:
    root = devkit(tmp_path / inside)
    split = locate_split(tmp_path, "train")
    assert split == (root / "JPEGImages", root / "ImageSets/Main/train.txt")
    data = CocoDataset(*split)
    assert data.class_names == ["cat", "dog", "zebra"]
    assert data.category_ids == [1, 2, 3]
    assert data.annotation_file == root / "ImageSets/Main/train.txt"
    # In the order of the list; difficult objects are no targets.
    assert [int(data[i][1]["image_id"]) for i in range(2)] == [1, 2]
    assert data[0][1]["boxes"].shape == (0, 4)
    # Pixels 11 to 30 reach from the edge at 10 to the one at 30.
    assert data[1][1]["boxes"].tolist() == [[10, 8, 30, 24], [0, 0, 40, 32]]
    assert data[1][1]["labels"].tolist() == [0, 1]
    train, val = check_dataset(split, locate_split(tmp_path, "val"))
    assert (train.images, train.boxes, train.crowd_boxes) == (2, 2, 1)
    assert (val.images, val.boxes) == (1, 1)
    assert train.class_names == val.class_names
    assert len(CocoDataset(*locate_split(tmp_path, "trainval"))) == 3


def test_difficult_objects_are_ignored_by_the_evaluation(tmp_path: Path) -> None:
    data = CocoDataset(*locate_split(devkit(tmp_path), "train"))
    truth = data.ground_truth()
    assert [(entry["bbox"], entry["iscrowd"]) for entry in truth["annotations"]] == [
        ([0, 0, 8, 8], 1), ([10, 8, 20, 16], 0), ([0, 0, 40, 32], 0)
    ]  # fmt: skip
    evaluator = CocoEvaluator(truth, data.category_ids)
    _, target = data[1]
    found = {"scores": torch.ones(2), "labels": target["labels"], "boxes": target["boxes"]}
    hard = {"scores": torch.tensor([2.0]), "labels": torch.tensor([0]), "boxes": torch.tensor([[0.0, 0, 8, 8]])}
    nothing = {key: values[:0] for key, values in hard.items()}
    # Missing the difficult object costs nothing, nor does finding it.
    for in_first in (nothing, hard):
        evaluator.reset()
        evaluator.process([1, 2], [in_first, found])
        assert evaluator.evaluate()["AP"] == pytest.approx(1)


def test_several_years_have_to_be_told_apart(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        devkit(tmp_path / "VOCdevkit" / year)
    with pytest.raises(InputError, match=r"holds several data sets: .*VOC2007, .*VOC2012\. Give one"):
        locate_split(tmp_path, "train")
    assert list(locate_splits(tmp_path / "VOCdevkit" / "VOC2007")) == ["train", "val"]


def test_reads_folders_that_hold_both(tmp_path: Path) -> None:
    for folder, objects in (("train", [DOG, CAT]), ("valid", [DOG])):
        picture(tmp_path / folder / "a.png")
        annotation(tmp_path / folder / "a.xml", *objects)
    splits = locate_splits(tmp_path)
    assert splits == {"train": (tmp_path / "train",) * 2, "val": (tmp_path / "valid",) * 2}
    # Both have the classes of both.
    train, val = check_dataset(*splits.values())
    assert train.class_names == val.class_names == ["cat", "dog"]
    assert CocoDataset(*splits["val"])[0][1]["labels"].tolist() == [1]


def test_coordinates_from_zero_are_edges_and_noted(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    annotation(root / "Annotations/c.xml", ("zebra", (0, 0.5, 9, 9.5), 0), CAT)
    content = read_content(*locate_split(root, "val"))
    assert [entry["bbox"] for entry in content.annotations] == [[0, 0.5, 9, 9], [10, 8, 20, 16]]
    file = root / "Annotations/c.xml"
    assert [(each.kind, each.detail) for each in content.problems] == [
        (Kind.COUNTED_FROM_ZERO, f"{file}:4: 0, 0.5, 9, 9.5")
    ]
    check_dataset(locate_split(root, "val"))


def test_the_picture_is_found_by_the_name_of_the_annotation(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    picture(root / "JPEGImages/a.png", (10, 10))
    (root / "JPEGImages/b.jpg").rename(root / "JPEGImages/b.bmp")
    data = CocoDataset(*locate_split(root, "train"))
    assert [entry["file_name"] for entry in data.ground_truth()["images"]] == ["b.bmp", "a.jpg"]
    check_dataset(locate_split(root, "train"))


@pytest.mark.parametrize("size", ["", "<width>0</width><height>0</height>"])
def test_the_file_says_the_size_where_the_annotation_does_not(tmp_path: Path, size: str) -> None:
    root = devkit(tmp_path)
    annotation(root / "Annotations/c.xml", CAT, size=size)
    (image,) = CocoDataset(*locate_split(root, "val")).ground_truth()["images"]
    assert (image["width"], image["height"]) == (40, 32)
    (root / "JPEGImages/c.jpg").unlink()
    assert problems(locate_split(root, "val"))[0][0] is Kind.IMAGE_MISSING


def test_boxes_turn_with_pictures_that_exif_turns(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(root / "JPEGImages/a.jpg").save(root / "JPEGImages/a.jpg", exif=exif)
    image, target = CocoDataset(*locate_split(root, "train"))[1]
    assert image.shape == (3, 40, 32)
    assert target["boxes"].tolist() == [[8, 10, 24, 30], [0, 0, 32, 40]]
    check_dataset(locate_split(root, "train"))


def test_everything_is_named_with_file_and_line(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    folder = root / "Annotations"
    (root / "ImageSets/Main/train.txt").write_text("a\nb\ngone\nd\na\n")
    annotation(folder / "a.xml", CAT, ("dog", (5, 5, 50, 9), 0), ("dog", ("x", 5, 50, 9), 0), ("", (1, 1, 2, 2), 0))
    (folder / "b.xml").write_text("<annotation>\n<object>\n</annotation>")
    annotation(folder / "d.xml", ("cat", (9, 9, 3, 3), 0), ("cat", (1, 1, 5, 5), "no"))
    found = problems(locate_split(root, "train"))
    assert [(kind, detail.replace(str(folder) + "/", "")) for kind, detail in found] == [
        (Kind.DUPLICATE, "line 5: a"),
        (Kind.MALFORMED, "a.xml:6: `xmin` is 'x'; expected a number"),
        (Kind.MALFORMED, "a.xml:7: the object has no `name`"),
        (Kind.MALFORMED, "b.xml: no well-formed XML: mismatched tag: line 3, column 2"),
        (Kind.MALFORMED, "d.xml:5: `difficult` is 'no'; expected a number"),
        (Kind.MALFORMED, "gone.xml does not exist"),
        (Kind.BOX_OUTSIDE, "Annotations/a.xml:5 (a.jpg, 40 × 32): bbox [4.0, 4.0, 46.0, 5.0]"),
        (Kind.BOX_INVERTED, "Annotations/d.xml:4 (d.jpg, 40 × 32): bbox [8.0, 8.0, -5.0, -5.0]"),
        (Kind.IMAGE_MISSING, f"image 4 (d.jpg): {root / 'JPEGImages/d.jpg'} does not exist"),
    ]


def test_a_broken_annotation_of_another_split_does_not_matter(tmp_path: Path) -> None:
    root = devkit(tmp_path)
    (root / "Annotations/c.xml").write_text("broken")
    assert check_dataset(locate_split(root, "train"))[0].class_names == ["cat", "dog"]
    assert "c.xml: no well-formed XML" in problems(locate_split(root, "val"))[0][1]


def test_xml_elements_know_their_line_and_entities_are_refused() -> None:
    root = parse_xml("<?xml version='1.0'?>\n<a><b> 1 </b>\n<c>ü<d/>&amp;</c></a>".encode())
    assert (root.tag, root.line, root.value("b"), root.value("c"), root.value("e", "none")) == (
        "a",
        2,
        "1",
        "ü&",
        "none",
    )
    assert [(child.tag, child.line) for child in root.children] == [("b", 2), ("c", 3)]
    bomb = b'<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;">]><a>&y;</a>'
    with pytest.raises(ValueError, match="entity declarations"):
        parse_xml(bomb)
    for text in (b"", b"<a>", b"<a></a><b></b>"):
        with pytest.raises(ValueError, match="no well-formed XML"):
            parse_xml(text)
