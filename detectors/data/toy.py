"""The toy data set: textured objects of five classes on cluttered backgrounds, drawn from a seed."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detectors.data.toy_scene import SHAPES, draw_scene
from vfmdistill.errors import InputError

# With gaps and not from 1 or 0, as real data sets have them.
CATEGORY_IDS = (3, 7, 11, 20, 42)

MANIFEST = "toy.json"
# Part of the manifest: a directory drawn by another version is not taken for this one's.
DRAWING_VERSION = 1
SMALLEST_IMAGE = 64


def write_toy_dataset(
    directory: str | os.PathLike[str],
    *,
    train_images: int = 400,
    val_images: int = 80,
    image_size: int = 160,
    seed: int = 0,
) -> Path:
    """Draw the toy data set into a directory, in COCO's format, and return the directory.

    The layout is `images/`, `instances_train.json`, `instances_val.json` and a manifest `toy.json`. Every picture
    follows from (seed, split, number) alone, so a larger set begins with the pictures of a smaller one; pixels and
    annotations are the same on every machine. A directory that holds the same set already is used as it is.

    Args:
        directory: made if need be; it appears under its name only when it is complete.
        train_images: how many pictures to train on, at least 1.
        val_images: how many pictures to validate on, at least 1.
        image_size: the side of the square pictures in pixels, at least 64.
        seed: not negative.

    Raises:
        InputError: the directory holds something else, or an argument is out of range.
    """
    target = Path(directory)
    manifest = {
        "version": DRAWING_VERSION,
        "train_images": train_images,
        "val_images": val_images,
        "image_size": image_size,
        "seed": seed,
    }
    if min(train_images, val_images) < 1 or image_size < SMALLEST_IMAGE or seed < 0:
        raise InputError(
            f"{manifest} is out of range; expected 1 image a split, {SMALLEST_IMAGE} pixels, seed 0 or more."
        )
    if _holds(target, manifest):
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(
            f"{target} exists and is not the toy data set {manifest}; give another directory or remove it."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        (unfinished / "images").mkdir(parents=True)
        _write_split(unfinished, "train", train_images, 0, image_size, seed)
        _write_split(unfinished, "val", val_images, train_images, image_size, seed)
        _write_json(unfinished / MANIFEST, manifest)
        try:
            if target.exists():
                target.rmdir()
            unfinished.rename(target)
        except OSError:
            # Another process may have put the same set there meanwhile, which is as good.
            if not _holds(target, manifest):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _holds(directory: Path, manifest: dict[str, int]) -> bool:
    """Tell whether a directory holds the complete data set of a manifest."""
    try:
        present = json.loads((directory / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    expected = manifest["train_images"] + manifest["val_images"]
    complete = all((directory / f"instances_{split}.json").is_file() for split in ("train", "val"))
    return bool(present == manifest and complete and len(list((directory / "images").glob("*.png"))) == expected)


def _write_split(directory: Path, split: str, count: int, offset: int, image_size: int, seed: int) -> None:
    """Write the pictures and annotations of one split; image ids go on from `offset`."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        rng = np.random.Generator(np.random.PCG64([seed, 0 if split == "train" else 1, number]))
        scene = draw_scene(rng, image_size)
        file_name = f"{split}_{number:05d}.png"
        Image.fromarray(scene.pixels).save(directory / "images" / file_name, compress_level=1)
        image_id = offset + number + 1
        images.append({"id": image_id, "file_name": file_name, "width": image_size, "height": image_size})
        for label, box in zip(scene.labels, scene.boxes, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORY_IDS[label],
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": key, "name": name} for key, name in zip(CATEGORY_IDS, SHAPES, strict=True)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _write_json(directory / f"instances_{split}.json", content)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
