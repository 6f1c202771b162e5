from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageDraw, PngImagePlugin

from detectors.data.checks import check_dataset
from detectors.data.coco import CocoDataset
from detectors.data.images import Header, read_headers, read_image
from detectors.data.inspection import ImageFacts, inspect_image
from detectors.data.orientation import turn_boxes, upright_size
from detectors.data.problems import DatasetError, Kind
from detectors.evaluation import CocoEvaluator
from detectors.pixels import to_pixels

STORED = (40, 30)
BOX = [4, 6, 10, 20]  # x, y, width, height in the stored pixels
QUARTER_TURNS = (5, 6, 7, 8)


def draw(path: Path, orientation: int, size: tuple[int, int] = STORED) -> None:
    """Write a picture whose stored pixels are red in BOX and black elsewhere."""
    picture = Image.new("RGB", size)
    x, y, width, height = BOX
    ImageDraw.Draw(picture).rectangle((x, y, x + width - 1, y + height - 1), fill="red")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture.save(path, exif=exif)


def red(image: torch.Tensor) -> list[int]:
    """Return the box around the red pixels of an image (3, H, W), xyxy."""
    rows, columns = torch.nonzero(image[0] > 128, as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def data_set(root: Path, annotated: tuple[int, int], bbox: list[int], crowd: int = 0) -> tuple[Path, Path]:
    content = {
        "info": {"year": 2020},
        "images": [{"id": 5, "file_name": "a.png", "width": annotated[0], "height": annotated[1], "license": 4}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 3,
                "bbox": bbox,
                "area": 200,
                "iscrowd": 0,
                "segmentation": [[1, 2]],
            },
            {"id": 2, "image_id": 5, "category_id": 3, "bbox": bbox, "area": 200, "iscrowd": crowd},
        ],
        "categories": [{"id": 3, "name": "red"}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return root, root / "instances.json"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_on_stored_pixels_turn_with_them(tmp_path: Path, orientation: int) -> None:
    draw(tmp_path / "a.png", orientation)
    data = CocoDataset(*data_set(tmp_path, STORED, BOX))
    image, target = data[0]
    width, height = STORED[::-1] if orientation in QUARTER_TURNS else STORED
    assert image.shape == (3, height, width)
    assert target["orig_size"].tolist() == [height, width]
    assert target["boxes"].canvas_size == (height, width)
    assert target["boxes"].tolist() == [red(image)] * 2
    # The predictor sees the same picture.
    assert torch.equal(image.as_subclass(torch.Tensor), to_pixels(tmp_path / "a.png"))


@pytest.mark.parametrize("orientation", QUARTER_TURNS)
def test_boxes_on_the_upright_picture_stay(tmp_path: Path, orientation: int) -> None:
    draw(tmp_path / "a.png", orientation)
    left, top, right, bottom = red(to_pixels(tmp_path / "a.png"))
    split = data_set(tmp_path, STORED[::-1], [left, top, right - left, bottom - top])
    check_dataset(split)
    data = CocoDataset(*split)
    image, target = data[0]
    assert target["boxes"].tolist() == [red(image)] * 2
    assert data.ground_truth() == json.loads(split[1].read_text())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_ground_truth_is_that_of_the_upright_pictures(tmp_path: Path, orientation: int) -> None:
    draw(tmp_path / "a.png", orientation)
    split = data_set(tmp_path, STORED, BOX, crowd=1)
    data = CocoDataset(*split)
    truth, content = data.ground_truth(), json.loads(split[1].read_text())
    image, target = data[0]
    left, top, right, bottom = red(image)
    assert [entry["bbox"] for entry in truth["annotations"]] == [[left, top, right - left, bottom - top]] * 2
    assert [entry["iscrowd"] for entry in truth["annotations"]] == [0, 1]
    assert truth["info"] == {"year": 2020}
    assert truth["images"][0]["license"] == 4
    assert (truth["images"][0]["height"], truth["images"][0]["width"]) == image.shape[1:]
    # An outline that was not turned would contradict the box.
    assert ("segmentation" in truth["annotations"][0]) == (orientation == 1)
    assert (truth == content) == (orientation == 1)
    evaluator = CocoEvaluator(truth, data.category_ids)
    found = {"scores": torch.ones(1), "labels": target["labels"], "boxes": target["boxes"]}
    evaluator.process([5], [found])
    assert evaluator.evaluate()["AP"] == pytest.approx(1)
    if orientation != 1:
        evaluator = CocoEvaluator(content, data.category_ids)
        evaluator.process([5], [found])
        assert evaluator.evaluate()["AP"] < 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_headers_say_what_the_pixels_are(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    draw(path, 6)
    # Pillow turns a TIFF itself.
    expected = Header(STORED[::-1], 1) if suffix == "tif" else Header(STORED, 6)
    assert read_headers([path]) == [expected]
    facts = inspect_image(path, STORED[::-1])
    assert isinstance(facts, ImageFacts)
    assert (facts.stored, facts.orientation) == expected
    assert upright_size(*expected) == read_image(path, upright=True).size == STORED[::-1]


def test_an_orientation_behind_the_pixels_of_a_png_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    draw(path, 8)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    last = data.index(b"IEND") - 4
    path.write_bytes(data[:start] + data[end:last] + data[start:end] + data[last:])
    assert read_headers([path]) == [Header(STORED, 8)]
    assert CocoDataset(*data_set(tmp_path, STORED, BOX))[0][0].shape == (3, *STORED)


def test_an_orientation_in_the_xmp_of_a_png_is_found(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", "x" * 40)
    Image.new("L", STORED).save(tmp_path / "a.png", pnginfo=text)
    assert read_headers([tmp_path / "a.png"]) == [Header(STORED, 1)]
    text.add_itxt("XML:com.adobe.xmp", '<rdf tiff:Orientation="6"/>')
    Image.new("L", STORED).save(tmp_path / "a.png", pnginfo=text)
    assert read_headers([tmp_path / "a.png"]) == [Header(STORED, 6)]


def test_headers_of_many_files_keep_their_order_and_say_what_is_broken(tmp_path: Path) -> None:
    for width in range(1, 30):
        Image.new("L", (width, 3)).save(tmp_path / f"{width}.png")
    (tmp_path / "7.png").write_bytes(b"nothing")
    headers = read_headers([tmp_path / f"{width}.png" for width in range(1, 31)])
    assert [header[0][0] if isinstance(header, Header) else None for header in headers] == [
        *range(1, 7), None, *range(8, 30), None
    ]  # fmt: skip
    assert "7.png" in headers[6]
    assert "No such file" in headers[29]


def test_an_orientation_that_exif_does_not_know_is_none(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 9)
    assert CocoDataset(*data_set(tmp_path, STORED, BOX))[0][1]["boxes"].tolist() == [[4, 6, 14, 26]] * 2


def test_a_size_that_no_orientation_explains_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 6)
    with pytest.raises(DatasetError) as caught:
        check_dataset(data_set(tmp_path, (41, 30), BOX))
    assert [problem.kind for problem in caught.value.problems] == [Kind.IMAGE_SIZE]
    draw(tmp_path / "a.png", 3)
    with pytest.raises(DatasetError, match="the file is 40 × 30, the annotations say 30 × 40"):
        check_dataset(data_set(tmp_path, STORED[::-1], BOX))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_no_boxes_and_the_callers_array(orientation: int) -> None:
    assert turn_boxes(np.zeros((0, 4), np.float32), STORED, orientation).shape == (0, 4)
    boxes = np.array([[1, 2, 3, 5]], np.float32)
    turned: Any = turn_boxes(boxes, STORED, orientation)
    assert turned.dtype == np.float32
    assert boxes.tolist() == [[1, 2, 3, 5]]
