from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image
from rich.console import Console

from detectors.data import write_toy_dataset
from detectors.data.checks import inspect_dataset, summarise
from detectors.data.doctor import diagnose, examine, main
from detectors.data.doctor_report import DoctorReport, Finding
from detectors.data.problems import DatasetError, Kind
from vfmdistill.errors import InputError

SIZE = (64, 48)


def pixels(seed: int, size: tuple[int, int] = SIZE) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


class DataSet:
    """A COCO data set that grows box by box; every picture is another one."""

    def __init__(self, root: Path, *categories: tuple[int, str]) -> None:
        self.root, self.seed = root, 0
        self.categories = categories or ((1, "cat"), (2, "dog"))
        self.content: dict[str, dict[str, list[Any]]] = {}
        (root / "images").mkdir(parents=True, exist_ok=True)

    def add(
        self, split: str, name: str, *boxes: tuple[Any, ...], picture: Image.Image | None = None, **image: Any
    ) -> None:
        """Add a picture with boxes (category id, x, y, width, height)."""
        self.seed += 1
        content = self.content.setdefault(split, {"images": [], "annotations": []})
        if not (self.root / "images" / name).exists():
            picture = picture or pixels(self.seed)
            picture.save(self.root / "images" / name, exif=picture.getexif())
        number = len(content["images"]) + 1
        entry = {"id": number, "file_name": name, "width": SIZE[0], "height": SIZE[1]} | image
        content["images"].append(entry)
        for category, *bbox in boxes:
            key = len(content["annotations"]) + 1
            content["annotations"].append({"id": key, "image_id": number, "category_id": category, "bbox": bbox})

    def write(self, **categories: Any) -> Path:
        for split, content in self.content.items():
            given = categories.get(split, self.categories)
            entries = [{"id": key, "name": name} for key, name in given]
            text = json.dumps(content | {"categories": entries})
            (self.root / f"instances_{split}.json").write_text(text)
        return self.root


def sound(root: Path) -> DataSet:
    """Return a data set that nothing is to be said about: ten boxes of each class in train, one in val."""
    data = DataSet(root)
    for i in range(10):
        data.add("train", f"train{i}.png", (1, i, 2, 20, 10), (2, 3, i, 30, 20))
    data.add("val", "val.png", (1, 3, 2, 20, 10), (2, 3, 4, 30, 20))
    return data


def findings(report: DoctorReport) -> dict[tuple[str, str], list[str]]:
    return {(finding.kind, finding.split): finding.places for finding in report.findings}


def test_nothing_is_said_of_a_sound_data_set(tmp_path: Path) -> None:
    report = examine(sound(tmp_path).write())
    assert report.findings == []
    assert (report.status(), report.status(strict=True)) == (0, 0)
    assert {name: (split.images, split.boxes, split.classes) for name, split in report.splits.items()} == {
        "train": (10, 20, {"cat": 10, "dog": 10}),
        "val": (1, 2, {"cat": 1, "dog": 1}),
    }


def test_every_reason_to_refuse_a_data_set_is_an_error(tmp_path: Path) -> None:
    data = sound(tmp_path)
    data.add("train", "broken.png", (1, 3, 3, 20, 20), (9, 3, 3, 20, 20), (1, 60, 3, 20, 20))
    data.add("val", "size.png", (1, 3, 3, 20, 20), width=65)
    data.add("val", "gone.png", (1, 5, 5, -3, 9), (1, 5, 5, 0, 9))
    root = data.write()
    (root / "images" / "broken.png").write_bytes((root / "images" / "broken.png").read_bytes()[:500])
    (root / "images" / "gone.png").unlink()
    report = examine(root)
    assert {key: len(places) for key, places in findings(report).items()} == {
        ("unknown_category", "train"): 1,
        ("box_outside", "train"): 1,
        ("image_unreadable", "train"): 1,
        ("image_size", "val"): 1,
        ("image_missing", "val"): 1,
        ("box_inverted", "val"): 1,
        ("box_without_area", "val"): 1,
        ("image_without_boxes", "val"): 1,
    }
    assert [finding.severity for finding in report.findings] == ["error"] * 7 + ["note"]
    assert report.status() == 1
    assert findings(report)["box_outside", "train"] == [
        "annotation 23 (broken.png, 64 × 48): bbox [60.0, 3.0, 20.0, 20.0]"
    ]
    dropped = examine(root, invalid_boxes="drop")
    severity = {finding.kind: finding.severity for finding in dropped.findings}
    assert (severity["box_outside"], severity["box_inverted"], severity["image_missing"]) == (
        "warning",
        "warning",
        "error",
    )


def test_the_trainer_looks_once_and_gets_both(tmp_path: Path) -> None:
    data = sound(tmp_path)
    data.add("val", "more.png", (1, 60, 3, 20, 20))
    root = data.write()
    splits = {name: (root / "images", root / f"instances_{name}.json") for name in ("train", "val")}
    inspections = inspect_dataset(*splits.values())
    with pytest.raises(DatasetError, match="boxes outside the image"):
        summarise(inspections)
    assert [summary.dropped_boxes for summary in summarise(inspections, "drop")] == [0, 1]
    report = diagnose(dict(zip(splits, inspections, strict=True)), str(root), invalid_boxes="drop")
    assert report == examine(root, invalid_boxes="drop")
    assert report.status() == 0
    assert report.status(strict=True) == 1


def test_boxes_on_top_of_each_other(tmp_path: Path) -> None:
    data = sound(tmp_path)
    data.add(
        "val",
        "more.png",
        (1, 3, 3, 20, 20),  # 3
        (1, 30, 3, 20, 20),  # 4: as large, elsewhere
        (2, 3, 3, 20, 20),  # 5: of another class
        (1, 3, 3, 20, 20),  # 6: is 3
        (1, 3.05, 3, 20, 20),  # 7: IoU 0.995 with 3
        (1, 3, 3, 20.5, 20),  # 8: IoU 0.976 with 3
        (1, 3, 3, 20, 20),  # 9: is 3
    )
    data.add("val", "other.png", (1, 3, 3, 20, 20))
    assert findings(examine(data.write())) == {
        ("box_repeated", "val"): [
            "annotation 6 is annotation 3 (more.png, cat)",
            "annotation 7 lies with IoU 0.995 on annotation 3 (more.png, cat)",
            "annotation 9 is annotation 3 (more.png, cat)",
        ]
    }


def test_repeated_boxes_are_those_of_a_plain_search(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = sound(tmp_path)
    expected = 0
    for i in range(12):
        boxes: list[tuple[Any, ...]] = []
        for _ in range(30):
            if boxes and rng.random() < 0.4:
                category, *box = boxes[rng.integers(len(boxes))]
                boxes.append((category, *(value + rng.choice([0, 0.02, 0.1]) for value in box)))
            else:
                boxes.append((int(rng.integers(1, 3)), *rng.integers(1, 20, 4).tolist()))
        corners = np.float32([[x, y, x + w, y + h] for _, x, y, w, h in boxes]).astype(np.float64)
        for j in range(len(boxes)):
            low, high = np.maximum(corners[:j, :2], corners[j, :2]), np.minimum(corners[:j, 2:], corners[j, 2:])
            common = (high - low).clip(0).prod(axis=1)
            areas = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
            same = np.array([boxes[k][0] == boxes[j][0] for k in range(j)], dtype=bool)
            expected += bool((same & (common / (areas[:j] + areas[j] - common) > 0.99)).any())
        data.add("train", f"more{i}.png", *boxes)
    places = findings(examine(data.write()))["box_repeated", "train"]
    assert len(places) == expected == 31


def test_tiny_boxes_in_the_file_and_at_the_input(tmp_path: Path) -> None:
    data = sound(tmp_path)
    data.add("val", "more.png", (1, 3, 3, 1.9, 20), (1, 3, 3, 2, 2))
    large = pixels(99, (1600, 48))
    data.add("val", "large.png", (1, 3, 3, 2.4, 20), (1, 30, 3, 2.6, 20), picture=large, width=1600)
    root = data.write()
    assert findings(examine(root)) == {
        ("box_tiny", "val"): [
            "annotation 3 (more.png): 1.90 × 20.00 pixels, 19.00 × 266.67 at 640 × 640",
            "annotation 5 (large.png): 2.40 × 20.00 pixels, 0.96 × 266.67 at 640 × 640",
        ]
    }
    assert findings(examine(root, input_size=(48, 1600)))["box_tiny", "val"] == [
        "annotation 3 (more.png): 1.90 × 20.00 pixels, 47.50 × 20.00 at 1600 × 48"
    ]
    assert len(findings(examine(root, input_size=(32, 32)))["box_tiny", "val"]) == 3


def test_tiny_boxes_of_turned_pictures_are_measured_as_they_are_seen(tmp_path: Path) -> None:
    data = sound(tmp_path)
    large = pixels(99, (1600, 48))
    large.getexif()[ExifTags.Base.Orientation] = 6
    data.add("val", "large.png", (1, 3, 3, 2.4, 20), picture=large, width=1600)
    # Upright it is 48 × 1600, and the short side of the box lies along the height of 1600.
    (place,) = findings(examine(data.write(), input_size=(640, 1600)))["box_tiny", "val"]
    assert place == "annotation 3 (large.png): 2.40 × 20.00 pixels, 0.96 × 666.67 at 1600 × 640"


def test_pictures_that_exif_turns(tmp_path: Path) -> None:
    data = sound(tmp_path)
    box = (1, 3, 3, 20, 20)
    for name, orientation, boxes, annotated in (
        ("one", 1, [box], SIZE),
        ("stored", 6, [box], SIZE),
        ("upright", 8, [box], SIZE[::-1]),
        ("half", 3, [box], SIZE),
        ("empty", 3, [], SIZE),
    ):
        picture = pixels(len(name) + 100)
        picture.getexif()[ExifTags.Base.Orientation] = orientation
        data.add("val", f"{name}.jpg", *boxes, picture=picture, width=annotated[0], height=annotated[1])
    square = pixels(200, (48, 48))
    square.getexif()[ExifTags.Base.Orientation] = 6
    data.add("val", "square.jpg", box, picture=square, width=48)
    report = examine(data.write())
    assert findings(report) == {
        ("orientation_unclear", "val"): [
            "half.jpg: orientation 3, boxes are taken to refer to the stored pixels",
            "square.jpg: orientation 6, boxes are taken to refer to the stored pixels",
        ],
        ("orientation", "val"): [
            "stored.jpg: orientation 6, boxes refer to the stored pixels and turn with them",
            "upright.jpg: orientation 8, boxes refer to the upright picture",
            "empty.jpg: orientation 3, there are no boxes",
        ],
        ("image_without_boxes", "val"): ["empty.jpg"],
    }
    assert [finding.severity for finding in report.findings] == ["warning", "note", "note"]


def test_the_same_picture_several_times(tmp_path: Path) -> None:
    data = sound(tmp_path)
    box = (1, 3, 3, 20, 20)
    data.add("train", "a.jpg", box, picture=pixels(50))
    (tmp_path / "images" / "b.jpg").write_bytes((tmp_path / "images" / "a.jpg").read_bytes())
    data.add("val", "b.jpg", box)
    # The same pixels with a comment behind the marker that begins the file.
    data_of_a = (tmp_path / "images" / "a.jpg").read_bytes()
    (tmp_path / "images" / "c.jpg").write_bytes(data_of_a[:2] + b"\xff\xfe\x00\x05abc" + data_of_a[2:])
    data.add("val", "c.jpg", box)
    # The same pixels compressed anew, in one split.
    data.add("val", "d.png", box, picture=pixels(51))
    pixels(51).save(tmp_path / "images" / "e.png", compress_level=1)
    data.add("val", "e.png", box)
    # Brightness alone is equal.
    for name, colour in (("f.jpg", 90), ("g.jpg", 160)):
        bands = [pixels(52).convert("L"), Image.new("L", SIZE, colour), Image.new("L", SIZE, 128)]
        data.add("val", name, box, picture=Image.merge("YCbCr", bands))
    # One file that both splits name.
    data.add("train", "h.png", box)
    data.add("val", "h.png", box)
    report = examine(data.write())
    assert findings(report) == {
        ("leak", "train + val"): [
            "train a.jpg, val b.jpg, val c.jpg: the same pixels",
            "train h.png, val h.png: the same bytes",
        ],
        ("repeated_picture", "val"): ["d.png, e.png: the same pixels"],
    }
    assert [finding.severity for finding in report.findings] == ["error", "warning"]


def test_a_file_that_a_split_lists_twice_is_a_duplicate_alone(tmp_path: Path) -> None:
    data = sound(tmp_path)
    data.add("val", "val.png", (1, 3, 2, 20, 10))
    assert findings(examine(data.write())) == {("duplicate", "val"): ["image file val.png (image id 2)"]}


def test_reduced_pixels_that_are_equal_do_not_suffice(tmp_path: Path) -> None:
    bands = [pixels(52).convert("L"), Image.new("L", SIZE, 128)]
    data = sound(tmp_path)
    for name, colour in (("f.jpg", 90), ("g.jpg", 160)):
        data.add(
            "val",
            name,
            (1, 3, 3, 20, 20),
            picture=Image.merge("YCbCr", [bands[0], Image.new("L", SIZE, colour), bands[1]]),
        )
    (inspection,) = inspect_dataset((data.write() / "images", tmp_path / "instances_val.json"))
    digests = [facts.pixel_digest for facts in inspection.images[1:] if facts is not None]
    # What the test above relies on: this is the case in which whole pictures have to be compared.
    assert digests[0] == digests[1]


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


def test_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    data = sound(tmp_path)
    data.add("train", "empty.png")
    del data.content["val"]
    data.content["train"]["annotations"][3]["iscrowd"] = 1
    (tmp_path / "images" / "notes.txt").touch()
    (tmp_path / "images" / "more").mkdir()
    pixels(80).save(tmp_path / "images" / "more" / "x.JPG", "JPEG")
    report = examine(data.write())
    assert findings(report) == {
        ("class_few", "train"): ["dog: 9"],
        ("image_without_boxes", "train"): ["empty.png"],
        ("crowd", "train"): ["annotation 4 (train1.png)"],
        ("unnamed_files", "train"): ["val.png", "more/x.JPG"],
        ("split_missing", "all"): ["val"],
    }


def test_yolo_and_pascal_voc(tmp_path: Path) -> None:
    yolo = tmp_path / "yolo"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (yolo / kind / split).mkdir(parents=True)
    pixels(1).save(yolo / "images/train/a.png")
    pixels(1).save(yolo / "images/val/b.png")
    (yolo / "labels/train/a.txt").write_text(
        "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.01 0.5\n0 0.5 0.5 0.5 0.5\n" + "0 .2 .2 .3 .3\n"
    )
    (yolo / "labels/val/b.txt").write_text("0 0.5 0.5 0.5 0.5\n7 0.5 0.5 0.5 0.5\n")
    (yolo / "labels/val/lost.txt").touch()
    (yolo / "data.yaml").write_text("names: [cat]\ntrain: images/train\nval: images/val\n")
    assert findings(examine(yolo)) == {
        ("unknown_category", "val"): [f"{yolo}/labels/val/b.txt:2: there is no class 7"],
        ("leak", "train + val"): ["train a.png, val b.png: the same bytes"],
        ("box_repeated", "train"): ["labels/train/a.txt:3 is labels/train/a.txt:1 (a.png, cat)"],
        ("box_tiny", "train"): ["labels/train/a.txt:2 (a.png): 0.64 × 24.00 pixels, 6.40 × 320.00 at 640 × 640"],
        ("class_few", "train"): ["cat: 4"],
        ("labels_without_image", "val"): ["labels/val/lost.txt"],
    }
    voc = tmp_path / "voc"
    box = "<xmin>0</xmin><ymin>1</ymin><xmax>20</xmax><ymax>20</ymax>"
    objects = f"<object><name>cat</name><bndbox>{box}</bndbox></object>"
    for split in ("train", "val"):
        (voc / split).mkdir(parents=True)
        pixels(ord(split[0])).save(voc / split / "a.png")
        (voc / split / "a.xml").write_text(f"<annotation>\n{objects if split == 'train' else ''}</annotation>")
    assert findings(examine(voc)) == {
        ("empty", "val"): ["1 usable images, 0 usable boxes"],
        ("class_few", "train"): ["cat: 1"],
        ("class_unmeasured", "val"): ["cat: 1 in train"],
        ("image_without_boxes", "val"): ["a.png"],
        ("counted_from_zero", "train"): [f"{voc}/train/a.xml:2: 0, 1, 20, 20"],
    }


def test_the_table_has_errors_first_and_cuts(tmp_path: Path) -> None:
    data = sound(tmp_path)
    for i in range(5):
        data.add("val", f"empty[{i}].png")
    data.add("val", "far.png", (1, 90, 3, 20, 20))
    report = examine(data.write())
    output = io.StringIO()
    report.show(Console(file=output, width=120))
    text = output.getvalue()
    assert text.startswith("train: 10 images, 20 boxes, 2 classes (")
    assert text.index("boxes outside the image") < text.index("images without boxes")
    assert "empty[2].png" in text
    assert "empty[3].png" not in text
    assert "and 3 more" in text
    assert text.endswith("1 error, 0 warnings, 1 note\n")
    assert all(len(line) <= 120 for line in text.splitlines()[2:])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = sound(tmp_path / "data")
    data.add("val", "tiny.png", (1, 3, 3, 1, 20), (1, 90, 3, 20, 20))
    words = ["--data", str(data.write()), "--json", str(tmp_path / "new" / "report.json")]
    assert main(words) == 1
    assert "1 error, 1 warning, 0 notes" in capsys.readouterr().out
    content = json.loads((tmp_path / "new" / "report.json").read_text())
    assert [(each["kind"], each["severity"], each["count"]) for each in content["findings"]] == [
        ("box_outside", "error", 1),
        ("box_tiny", "warning", 1),
    ]
    assert content["splits"]["val"]["classes"] == {"cat": 2, "dog": 1}
    report = DoctorReport.model_validate(
        {**content, "findings": [{k: v for k, v in each.items() if k != "count"} for each in content["findings"]]}
    )
    assert report == examine(tmp_path / "data")
    data.content["val"]["annotations"].pop()
    data.write()
    assert main(words) == 0
    assert main([*words, "--strict"]) == 1
    with pytest.raises(InputError, match="does not exist"):
        main(["--data", str(tmp_path / "nowhere")])


def test_as_a_program_it_exits_with_its_status(tmp_path: Path) -> None:
    data = write_toy_dataset(tmp_path / "toy", train_images=4, val_images=2, image_size=64)
    (data / "images" / "val_00000.png").write_text("broken")
    words = [sys.executable, "-m", "detectors.data.doctor", "--data", str(data)]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "unreadable or truncated images" in done.stdout


def test_every_kind_has_its_words() -> None:
    assert {kind.severity for kind in Kind} == {"error", "warning", "note"}
    assert len({kind.heading for kind in Kind}) == len(Kind)
    fields = {"severity": "note", "kind": "x", "split": "train", "annotations": "a", "heading": "h", "advice": "a"}
    assert Finding.model_validate({**fields, "places": ["a", "b"]}).count == 2
