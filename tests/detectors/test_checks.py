from __future__ import annotations

import io
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detectors.data import inspection
from detectors.data.checks import check_dataset, inspect_dataset
from detectors.data.inspection import ImageFacts, inspect_image
from detectors.data.problems import LISTED_PER_KIND, DatasetError, Kind


def failure(*splits: Any, **options: Any) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        check_dataset(*splits, **options)
    return caught.value


def found(error: DatasetError) -> list[tuple[Kind, str]]:
    return [(problem.kind, problem.detail) for problem in error.problems]


def photograph() -> Image.Image:
    """Return 160 × 120 pixels with the structure of a photograph."""
    coarse = np.random.default_rng(0).integers(0, 256, (15, 20, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


def test_a_sound_data_set_passes_with_a_summary(tmp_path: Path, coco_files: Any) -> None:
    annotations = coco_files.content()
    annotations["annotations"][0]["iscrowd"] = 1
    train = coco_files.write(tmp_path, annotations)
    val = coco_files.write(tmp_path, split="val")
    first, second = check_dataset(train, val)
    assert (first.images, first.boxes, first.crowd_boxes, first.dropped_boxes) == (3, 2, 1, 0)
    assert (second.images, second.boxes, second.crowd_boxes) == (3, 3, 0)
    assert first.class_names == second.class_names == ["cat", "dog", "zebra"]


def test_everything_is_named_at_once_with_file_and_id(tmp_path: Path, coco_files: Any) -> None:
    annotations = coco_files.content(images=8)
    images, boxes, categories = (annotations[key] for key in ("images", "annotations", "categories"))
    images[0]["file_name"] = "gone.png"
    images[3]["width"] = 41
    images += [{"id": 10, "file_name": "again.png", "width": 40, "height": 30}]
    images += [{"id": 77, "file_name": "4.png", "width": 40, "height": 30}]
    images += [{"id": 78, "file_name": "no size.png"}]
    boxes[1]["bbox"] = [35, 3, 10, 12]
    boxes[2]["bbox"] = [5, 5, 0, 3]
    boxes[4]["bbox"] = [5, 5, -4, 3]
    boxes[5]["bbox"] = [5, float("nan"), 4, 3]
    boxes[6]["bbox"] = [5, 5, 4]
    boxes += [{"id": 900, "image_id": 4711, "category_id": 7, "bbox": [1, 1, 2, 2]}]
    boxes += [{"id": 901, "image_id": 10, "category_id": 55, "bbox": [1, 1, 2, 2]}]
    boxes += [{"id": 100, "image_id": 10, "category_id": 7, "bbox": [1, 1, 2, 2]}]
    boxes += [{"id": True, "image_id": 10, "category_id": 7, "bbox": [1, 1, 2, 2]}]
    categories += [{"id": 7, "name": "lynx"}, {"id": 8, "name": "cat"}]
    split = coco_files.write(tmp_path, annotations, images=8)
    (split.images_dir / "1.png").write_bytes(b"no picture")
    whole = (split.images_dir / "2.png").read_bytes()
    (split.images_dir / "2.png").write_bytes(whole[: len(whole) // 2])

    problems = found(failure(split))

    def details(kind: Kind) -> list[str]:
        return [detail for problem_kind, detail in problems if problem_kind is kind]

    assert details(Kind.DUPLICATE) == [
        "category id 7: 'cat' and 'lynx'",
        "category name 'cat' (category id 8)",
        "image id 10: gone.png and again.png",
        "image file 4.png (image id 77)",
        "annotation id 100",
    ]
    assert details(Kind.MALFORMED) == [
        "images[10] (id 78): `width` is missing, `height` is missing",
        "annotation 106: bbox [5, 5, 4] is not [x, y, width, height]",
        "annotations[11] (id True): `id` is True, not int",
    ]
    assert details(Kind.UNKNOWN_IMAGE) == ["annotation 900: there is no image 4711"]
    assert details(Kind.UNKNOWN_CATEGORY) == ["annotation 901 (gone.png): there is no category 55"]
    assert details(Kind.BOX_OUTSIDE) == ["annotation 101 (1.png, 40 × 30): bbox [35.0, 3.0, 10.0, 12.0]"]
    assert details(Kind.BOX_WITHOUT_AREA) == ["annotation 102 (2.png, 40 × 30): bbox [5.0, 5.0, 0.0, 3.0]"]
    assert details(Kind.BOX_INVERTED) == ["annotation 104 (4.png, 40 × 30): bbox [5.0, 5.0, -4.0, 3.0]"]
    assert details(Kind.BOX_NOT_FINITE) == ["annotation 105 (5.png, 40 × 30): bbox [5.0, nan, 4.0, 3.0]"]
    assert [detail.split(":")[0] for detail in details(Kind.IMAGE_MISSING)] == ["image 10 (gone.png)"]
    unreadable = details(Kind.IMAGE_UNREADABLE)
    assert [detail.split(":")[0] for detail in unreadable] == ["image 11 (1.png)", "image 12 (2.png)"]
    assert "truncated" in unreadable[1]
    assert details(Kind.IMAGE_SIZE) == ["image 13 (3.png): the file is 40 × 30, the annotations say 41 × 30"]
    assert len(problems) == 18


def test_the_message_groups_and_cuts_but_the_error_keeps_all(tmp_path: Path, coco_files: Any) -> None:
    annotations = coco_files.content()
    annotations["annotations"] += [
        {"id": i, "image_id": 10, "category_id": 7, "bbox": [50, 50, 9, 9]} for i in range(200, 320)
    ]
    split = coco_files.write(tmp_path, annotations)
    error = failure(split)
    lines = str(error).splitlines()
    assert lines[0] == "120 problems in the data set"
    assert lines[1].startswith(f"{split.annotation_file}: boxes outside the image (120); correct them")
    assert lines[-1] == "  - and 70 more"
    assert len(lines) == 2 + LISTED_PER_KIND + 1
    assert len(error.problems) == 120


def test_a_box_may_overhang_by_a_pixel(tmp_path: Path, coco_files: Any) -> None:
    annotations = coco_files.content()
    annotations["annotations"][0]["bbox"] = [-1, -1, 42, 32]
    check_dataset(coco_files.write(tmp_path, annotations))
    annotations["annotations"][0]["bbox"] = [-1.01, 0, 20, 20]
    assert found(failure(coco_files.write(tmp_path, annotations)))[0][0] is Kind.BOX_OUTSIDE
    # Within the tolerance, but nothing is left of it inside.
    annotations["annotations"][0]["bbox"] = [40, 0, 0.9, 20]
    assert found(failure(coco_files.write(tmp_path, annotations)))[0][0] is Kind.BOX_WITHOUT_AREA


def test_dropping_invalid_boxes_reports_their_number_and_nothing_else_is_forgiven(
    tmp_path: Path, coco_files: Any
) -> None:
    annotations = coco_files.content()
    annotations["annotations"][0]["bbox"] = [5, 5, 0, 0]
    (summary,) = check_dataset(coco_files.write(tmp_path, annotations), invalid_boxes="drop")
    assert (summary.boxes, summary.dropped_boxes) == (2, 1)
    annotations["annotations"][1]["image_id"] = 4711
    error = failure(coco_files.write(tmp_path, annotations), invalid_boxes="drop")
    assert [kind for kind, _ in found(error)] == [Kind.UNKNOWN_IMAGE]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON"),
        ("[]", "holds a list where an object is expected"),
        ('{"images": [], "annotations": {}}', "the list `annotations` is a dict"),
        ('{"images": [], "annotations": []}', "the list `categories` is missing"),
        ('{"images": [3], "annotations": [], "categories": []}', "images[0] is a int, not an object"),
    ],
)
def test_malformed_files(tmp_path: Path, coco_files: Any, text: str, expected: str) -> None:
    split = coco_files.write(tmp_path)
    split.annotation_file.write_text(text, encoding="latin-1")
    assert expected in str(failure(split))


def test_missing_annotation_file_and_image_folder(tmp_path: Path, coco_files: Any) -> None:
    split = coco_files.write(tmp_path)
    assert "nowhere.json: malformed annotations" in str(failure((split.images_dir, tmp_path / "nowhere.json")))
    assert "nowhere does not exist" in str(failure((tmp_path / "nowhere", split.annotation_file)))


@pytest.mark.parametrize("emptied", ["images", "annotations"])
def test_empty_data_sets(tmp_path: Path, coco_files: Any, emptied: str) -> None:
    annotations = coco_files.content() | {emptied: []}
    if emptied == "images":
        annotations["annotations"] = []
    assert found(failure(coco_files.write(tmp_path, annotations)))[0][0] is Kind.EMPTY


def test_crowds_alone_are_nothing_to_train_on(tmp_path: Path, coco_files: Any) -> None:
    annotations = coco_files.content(1)
    annotations["annotations"][0]["iscrowd"] = 1
    assert found(failure(coco_files.write(tmp_path, annotations, images=1)))[0][0] is Kind.EMPTY


def test_classes_of_the_splits_have_to_match(tmp_path: Path, coco_files: Any) -> None:
    other = coco_files.content()
    other["categories"][0]["name"] = "horse"
    train = coco_files.write(tmp_path)
    error = failure(train, coco_files.write(tmp_path, other, split="val"))
    assert found(error) == [
        (Kind.CLASSES, "expected but not in the file: zebra"),
        (Kind.CLASSES, "in the file but not expected: horse"),
    ]
    assert {problem.file.name for problem in error.problems} == {"instances_val.json"}
    # Classes that are given hold for every split.
    error = failure(train, train, class_names=["cat", "dog", "zebra", "cow"])
    assert found(error) == [(Kind.CLASSES, "expected but not in the file: cow")] * 2


@pytest.mark.parametrize("progressive", [False, True])
def test_truncation_is_found_wherever_it_lies(tmp_path: Path, progressive: bool) -> None:
    buffer = io.BytesIO()
    photograph().save(buffer, "JPEG", quality=90, progressive=progressive)
    whole = buffer.getvalue()
    path = tmp_path / "picture.jpg"
    path.write_bytes(whole)
    assert isinstance(inspect_image(path, (160, 120)), ImageFacts)
    lengths = {len(whole) * part // 60 for part in range(1, 60)} | {len(whole) - missing for missing in range(1, 24)}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        found = inspect_image(path, (160, 120))
        assert not isinstance(found, ImageFacts), f"{length} of {len(whole)} bytes passed"
        assert found[0] is Kind.IMAGE_UNREADABLE


def test_a_message_on_an_unreadable_image_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(b"no picture")
    assert inspect_image(tmp_path / "picture.jpg", (1, 1)) == (
        Kind.IMAGE_UNREADABLE,
        f"cannot identify image file '{tmp_path / 'picture.jpg'}'",
    )


def test_whoever_interrupts_does_not_wait_for_the_rest(
    tmp_path: Path, coco_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = []

    def slow(path: Path, size: tuple[int, int]) -> tuple[Kind, str]:
        looked_at.append(path)
        time.sleep(0.02)
        return Kind.IMAGE_MISSING, "slow"

    def interrupted(items: Iterable[Any], title: str, number: int) -> Iterator[Any]:
        assert (title, number) == ("instances_train.json", 200)
        yield next(iter(items))
        raise KeyboardInterrupt

    monkeypatch.setattr(inspection, "inspect_image", slow)
    split = coco_files.write(tmp_path, coco_files.content(200), images=1)
    with pytest.raises(KeyboardInterrupt):
        inspect_dataset(split, watch=interrupted)
    assert len(looked_at) < 100


def test_pixels_of_16_bits_are_refused_instead_of_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 40), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    kind, detail = inspect_image(tmp_path / "deep.png", (40, 30))[:2]
    assert kind is Kind.IMAGE_UNREADABLE
    assert "8-bit" in str(detail)


def test_annotations_with_infinite_boxes_are_read(tmp_path: Path, coco_files: Any) -> None:
    annotations = coco_files.content()
    annotations["annotations"][0]["bbox"] = [0, 0, float("inf"), 2]
    split = coco_files.write(tmp_path, annotations)
    assert "Infinity" in split.annotation_file.read_text()
    assert json.loads(split.annotation_file.read_text())
    assert found(failure(split))[0][0] is Kind.BOX_NOT_FINITE
