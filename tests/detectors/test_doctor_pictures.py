from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image
from support.growing_data import SIZE, findings, pixels, sound

from detectors.data.checks import inspect_dataset
from detectors.data.doctor import examine


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
