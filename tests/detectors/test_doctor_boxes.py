from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags
from support.growing_data import findings, pixels, sound

from detectors.data.doctor import examine


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
