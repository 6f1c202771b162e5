"""Where the images and annotations of a data set lie."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from vfmdistill.errors import InputError, unknown_name

# A split is called by several names in the wild; the first one is ours.
SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}

# (image folder, annotation file), relative to the data directory; the first that exists is taken.
LAYOUTS = (
    ("images", "instances_{split}.json"),
    ("{split}2017", "annotations/instances_{split}2017.json"),
    ("images/{split}2017", "annotations/instances_{split}2017.json"),
    ("images/{split}", "annotations/instances_{split}.json"),
    ("images", "annotations/instances_{split}.json"),
    ("{split}", "annotations/instances_{split}.json"),
    ("{split}", "{split}/_annotations.coco.json"),
)


class Split(NamedTuple):
    """The image folder and the annotation file of one split."""

    images_dir: Path
    annotation_file: Path


def locate_split(data_dir: str | os.PathLike[str], split: str) -> Split:
    """Find one split of a COCO-format data set.

    Known layouts are a folder `images` beside `instances_train.json`, COCO's own (`train2017` and
    `annotations/instances_train2017.json`), and Roboflow's (`train/_annotations.coco.json`, with `valid` or `val`).

    Args:
        data_dir: the directory that holds all splits.
        split: "train", "val" or "test".

    Raises:
        UnknownNameError: `split` is none of these.
        InputError: no layout fits; the message lists what was looked for.
    """
    if split not in SPLIT_NAMES:
        raise unknown_name("split", split, SPLIT_NAMES)
    root = Path(data_dir)
    if not root.is_dir():
        raise InputError(f"data directory {root} does not exist or is no directory.")
    tried = []
    for name in SPLIT_NAMES[split]:
        for images, file in LAYOUTS:
            candidate = Split(root / images.format(split=name), root / file.format(split=name))
            if candidate.images_dir.is_dir() and candidate.annotation_file.is_file():
                return candidate
            tried.append(candidate)
    lines = [f"no {split} split in {root}; looked for one of these pairs:"]
    for images_dir, annotation_file in tried:
        lines.append(
            f"  {images_dir.relative_to(root)}/ ({_state(images_dir.is_dir())}) with "
            f"{annotation_file.relative_to(root)} ({_state(annotation_file.is_file())})"
        )
    raise InputError("\n".join(lines))


def _state(exists: bool) -> str:
    return "found" if exists else "missing"
