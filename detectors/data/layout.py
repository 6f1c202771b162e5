"""Where the images and annotations of a data set lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from detectors.data.yolo_yaml import read_data_yaml
from vfmdistill.errors import InputError, unknown_name

# A split is called by several names in the wild; the first one is ours.
SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid"), "test": ("test",), "trainval": ("trainval",)}

# COCO: (image folder, annotation file), relative to the data directory; the first that exists is taken.
COCO_LAYOUTS = (
    ("images", "instances_{split}.json"),
    ("{split}2017", "annotations/instances_{split}2017.json"),
    ("images/{split}2017", "annotations/instances_{split}2017.json"),
    ("images/{split}", "annotations/instances_{split}.json"),
    ("images", "annotations/instances_{split}.json"),
    ("{split}", "annotations/instances_{split}.json"),
    ("{split}", "{split}/_annotations.coco.json"),
)

# YOLO without data.yaml: (image folder, folder of labels), beside classes.txt.
YOLO_LAYOUTS = (("images/{split}", "labels/{split}"), ("{split}/images", "{split}/labels"))

# YOLO: what data.yaml is called; any other name does if it is the only YAML file there.
YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")

# Pascal VOC: where the folders of its years lie.
VOC_YEARS = ("VOC[0-9]*", "VOCdevkit/VOC[0-9]*")


class Split(NamedTuple):
    """Where one split lies.

    Attributes:
        images_dir: the image folder. YOLO: or the text file that lists images; the first of several. Pascal VOC:
            `JPEGImages`, or the folder with images and annotations.
        annotation_file: the COCO file. YOLO: data.yaml or classes.txt. Pascal VOC: the list of images in
            `ImageSets/Main`, or the folder with images and annotations.
    """

    images_dir: Path
    annotation_file: Path


class _Candidate(NamedTuple):
    """A place where a split may be, the files and folders that have to be there, and what else speaks against it."""

    split: Split
    needed: tuple[Path, ...]
    fault: str = ""

    def exists(self) -> bool:
        return not self.fault and all(path.exists() for path in self.needed)

    def describe(self, root: Path) -> str:
        return " with ".join(f"{_shown(path, root)} ({_state(path)})" for path in self.needed) + self.fault


def locate_split(data_dir: str | os.PathLike[str], split: str) -> Split:
    """Find one split of a data set in the format of COCO, YOLO or Pascal VOC, in this order.

    COCO: a folder `images` beside `instances_train.json`; COCO's own layout (`train2017` and
    `annotations/instances_train2017.json`); Roboflow's (`train/_annotations.coco.json`, with `valid` or `val`).
    YOLO: data.yaml as Ultralytics has it; or classes.txt beside `images/train` and `labels/train`, or `train/images`
    and `train/labels`. Pascal VOC: `JPEGImages`, `Annotations` and `ImageSets/Main/train.txt`, here, in `VOC2012`, or
    in `VOCdevkit/VOC2012`; or a folder `train` that holds images and annotations.

    Args:
        data_dir: the directory that holds all splits, or YOLO's data.yaml itself.
        split: "train", "val", "test" or "trainval".

    Raises:
        UnknownNameError: `split` is none of these.
        InputError: no layout fits, and the message lists what was looked for; or several do.
    """
    if split not in SPLIT_NAMES:
        raise unknown_name("split", split, SPLIT_NAMES)
    root = Path(data_dir)
    if not root.exists():
        raise InputError(f"data directory {root} does not exist.")
    if not root.is_dir() and root.suffix not in (".yaml", ".yml"):
        raise InputError(f"data directory {root} is no directory, and no YAML file that describes a YOLO data set.")
    tried: list[str] = []
    for name, find in (("COCO", _coco), ("YOLO", _yolo), ("Pascal VOC", _voc)):
        candidates = list(find(root, split))
        found = [candidate.split for candidate in candidates if candidate.exists()]
        if name == "Pascal VOC" and len(found) > 1:
            raise InputError(
                f"{root} holds several data sets: {', '.join(str(each.images_dir.parent) for each in found)}. "
                "Give one of these folders."
            )
        if found:
            return found[0]
        tried += [f"  {name}: {candidate.describe(root)}" for candidate in candidates]
    tried.sort(key=lambda line: "(found)" not in line)  # the nearest first
    raise InputError("\n".join([f"no {split} split in {root}; looked for one of these:", *tried]))


def locate_splits(data_dir: str | os.PathLike[str]) -> dict[str, Split]:
    """Find those of train, val and test that a data set has; see `locate_split`.

    Raises:
        InputError: it has none of them.
    """
    splits, errors = {}, []
    for name in ("train", "val", "test"):
        try:
            splits[name] = locate_split(data_dir, name)
        except InputError as error:
            errors.append(error)
    if not splits:
        raise errors[0]
    return splits


def _coco(root: Path, split: str) -> Iterator[_Candidate]:
    if root.is_file():
        return
    for name in SPLIT_NAMES[split]:
        for images, file in COCO_LAYOUTS:
            place = Split(root / images.format(split=name), root / file.format(split=name))
            yield _Candidate(place, place)


def _yolo(root: Path, split: str) -> Iterator[_Candidate]:
    file = root if root.is_file() else _yaml_file(root)
    if not file.is_file():
        yield _Candidate(Split(root / "images" / split, file), (file,))
    else:
        data = read_data_yaml(file)
        if split in data.splits:
            images = data.splits[split][0]
            yield _Candidate(Split(images, file), (file, images))
        else:
            fault = f": {'; '.join(data.faults) or f'it has no `{split}`'}"
            yield _Candidate(Split(file.parent, file), (file,), fault)
    if root.is_dir():
        for name in SPLIT_NAMES[split]:
            for images_folder, labels in YOLO_LAYOUTS:
                place = Split(root / images_folder.format(split=name), root / "classes.txt")
                yield _Candidate(place, (place.images_dir, root / labels.format(split=name), place.annotation_file))


def _yaml_file(root: Path) -> Path:
    names = [path for name in YAML_NAMES if (path := root / name).is_file()]
    if not names:
        others = [*root.glob("*.yaml"), *root.glob("*.yml")]
        names = others if len(others) == 1 else []
    return names[0] if names else root / YAML_NAMES[0]


def _voc(root: Path, split: str) -> Iterator[_Candidate]:
    if root.is_file():
        return
    for folder in [root, *(folder for pattern in VOC_YEARS for folder in sorted(root.glob(pattern)))]:
        place = Split(folder / "JPEGImages", folder / "ImageSets" / "Main" / f"{split}.txt")
        yield _Candidate(place, (place.images_dir, folder / "Annotations", place.annotation_file))
    for name in SPLIT_NAMES[split]:
        annotation = next((root / name).glob("*.xml"), root / name / "*.xml")
        yield _Candidate(Split(root / name, root / name), (root / name, annotation))


def _shown(path: Path, root: Path) -> str:
    shown = path.relative_to(root) if root.is_dir() and path.is_relative_to(root) else path
    return f"{shown}/" if path.is_dir() or not path.suffix else str(shown)


def _state(path: Path) -> str:
    return "found" if path.exists() else "missing"
