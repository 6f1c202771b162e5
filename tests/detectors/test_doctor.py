from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from support.growing_data import findings, pixels, sound

from detectors.data import write_toy_dataset
from detectors.data.checks import inspect_dataset, summarise
from detectors.data.doctor import diagnose, examine, main
from detectors.data.doctor_report import DoctorReport, Finding
from detectors.data.problems import DatasetError, Kind
from vfmdistill.errors import InputError


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
