from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detectors.data.checks import check_dataset
from detectors.data.layout import locate_split
from detectors.data.toy import CATEGORY_IDS, write_toy_dataset
from detectors.data.toy_scene import SHAPES, draw_scene
from vfmdistill.errors import InputError

SMALL = {"train_images": 6, "val_images": 3, "image_size": 64}


def contents(directory: Path) -> dict[str, bytes]:
    pixels = {path.name: np.asarray(Image.open(path)).tobytes() for path in (directory / "images").iterdir()}
    return pixels | {path.name: path.read_bytes() for path in directory.glob("*.json")}


def test_is_a_sound_data_set_with_gaps_in_its_category_ids(tmp_path: Path) -> None:
    directory = write_toy_dataset(tmp_path / "toy", **SMALL)
    train, val = check_dataset(*(locate_split(directory, split) for split in ("train", "val")))
    assert (train.images, val.images) == (6, 3)
    assert train.class_names == val.class_names == list(SHAPES)
    annotations = json.loads(train.annotation_file.read_text())
    assert [category["id"] for category in annotations["categories"]] == list(CATEGORY_IDS) == [3, 7, 11, 20, 42]


def test_follows_from_the_seed(tmp_path: Path) -> None:
    first, again, other = (
        contents(write_toy_dataset(tmp_path / name, seed=seed, **SMALL))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again
    assert all(first[name] != other[name] for name in first)
    pictures = [pixels for name, pixels in first.items() if name.endswith(".png")]
    assert len(set(pictures)) == len(pictures) == 9


def test_pictures_do_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = contents(write_toy_dataset(tmp_path / "few", **SMALL))
    many = contents(write_toy_dataset(tmp_path / "many", **{**SMALL, "train_images": 8}))
    assert {name: many[name] for name in few if name.endswith(".png")} == {
        name: pixels for name, pixels in few.items() if name.endswith(".png")
    }


def test_is_the_same_on_every_machine() -> None:
    """The pins were made on x86-64 with numpy 2.4; other machines have to draw the same pixels."""
    scene = draw_scene(np.random.Generator(np.random.PCG64([0, 1, 1])), 96)
    assert hashlib.sha256(scene.pixels.tobytes()).hexdigest()[:16] == "75683e13672aa40e"
    assert scene.labels == [3, 4, 1, 2, 0]
    assert scene.boxes == [[58, 43, 21, 21], [42, 12, 29, 29], [1, 45, 39, 38], [68, 14, 15, 16], [0, 8, 23, 23]]


def test_objects_are_large_within_the_picture_and_hardly_covered() -> None:
    counts: Counter[int] = Counter()
    classes: Counter[int] = Counter()
    for number in range(60):
        scene = draw_scene(np.random.Generator(np.random.PCG64(number)), 100)
        assert scene.pixels.shape == (100, 100, 3)
        assert scene.pixels.dtype == np.uint8
        counts[len(scene.boxes)] += 1
        classes.update(scene.labels)
        for index, (x, y, width, height) in enumerate(scene.boxes):
            assert 0 <= x < x + width <= 100
            assert 0 <= y < y + height <= 100
            # The triangle is the slimmest: 1.5 radii across at the least, of a radius from 10 to 22.5.
            assert 13 <= min(width, height) <= max(width, height) <= 46
            for other_x, other_y, other_width, other_height in scene.boxes[:index]:
                across = min(x + width, other_x + other_width) - max(x, other_x)
                down = min(y + height, other_y + other_height) - max(y, other_y)
                smaller = min(width * height, other_width * other_height)
                assert max(0, across) * max(0, down) <= 0.25 * smaller
    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert set(classes) == set(range(5))


def test_boxes_are_tight() -> None:
    """Without background and grain, the painted pixels are the box, to a pixel of soft edge."""
    from detectors.data import toy_scene

    rng = np.random.Generator(np.random.PCG64(0))
    for shape in SHAPES.values():
        place = toy_scene._placement(rng, 120)
        rows, columns, opacity, _ = toy_scene._rasterise(shape, place, 120)
        x, y, width, height = toy_scene._tight_box(rows, columns, opacity)
        covered = np.zeros((120, 120), dtype=bool)
        covered[rows, columns] = opacity > 0
        outside = covered.copy()
        outside[max(0, y - 1) : y + height + 1, max(0, x - 1) : x + width + 1] = False
        assert not outside.any()
        assert covered[y : y + height, x].any()
        assert covered[y, x : x + width].any()


def test_an_existing_set_is_used_as_it_is(tmp_path: Path) -> None:
    directory = write_toy_dataset(tmp_path / "toy", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    assert write_toy_dataset(directory, **SMALL) == directory
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_an_empty_directory_is_filled_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    directory = write_toy_dataset(tmp_path / "toy", **SMALL)
    with pytest.raises(InputError, match="is not the toy data set"):
        write_toy_dataset(directory, **{**SMALL, "seed": 1})
    (directory / "images" / "val_00001.png").unlink()
    with pytest.raises(InputError, match="is not the toy data set"):
        write_toy_dataset(directory, **SMALL)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is not the toy data set"):
        write_toy_dataset(tmp_path / "file", **SMALL)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        write_toy_dataset(tmp_path / "toy", **SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"train_images": 0}, {"val_images": 0}, {"image_size": 63}, {"seed": -1}])
def test_arguments_out_of_range(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match="out of range"):
        write_toy_dataset(tmp_path / "toy", **{**SMALL, **wrong})
