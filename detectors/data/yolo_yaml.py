"""YOLO's data.yaml: what the classes are called, and which folders make up each split."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# What the file calls a split; the first that it has is taken.
SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",), "trainval": ("trainval",)}


@dataclass(frozen=True)
class DataYaml:
    """What a data.yaml says, as far as it can be understood.

    Attributes:
        file: the file.
        names: class index → name.
        splits: "train", "val" … → image folders, or text files that list images, existing or not.
        keypoints: labels hold keypoints behind their box.
        faults: what is wrong with the file.
    """

    file: Path
    names: dict[int, str] = field(default_factory=dict)
    splits: dict[str, list[Path]] = field(default_factory=dict)
    keypoints: bool = False
    faults: list[str] = field(default_factory=list)


def read_data_yaml(file: Path) -> DataYaml:
    """Read a data.yaml as Ultralytics understands it.

    `names` is a list, or a mapping from class indices. `train`, `val` and `test` are a folder, a text file that lists
    images, or a list of these, relative to `path`, which is itself relative to the folder of the file. Where nothing
    is there (the file was written for another machine), the folder of the file takes the place of `path`, and a leading
    "../" is left out, as exports of Roboflow need it.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return DataYaml(file, faults=[f"cannot be read as YAML: {error}"])
    if not isinstance(content, dict):
        return DataYaml(file, faults=[f"holds a {type(content).__name__} where keys and values are expected"])
    faults: list[str] = []
    names = _names(content, faults)
    splits = {}
    for split, keys in SPLIT_KEYS.items():
        given = next((content[key] for key in keys if content.get(key)), None)
        if given is None:
            continue
        entries = given if isinstance(given, list) else [given]
        if not all(isinstance(entry, str) for entry in entries):
            faults.append(f"`{split}` is {given!r}; expected a folder, a text file, or a list of these")
            continue
        splits[split] = [_resolve(file.parent, str(content.get("path") or ""), entry) for entry in entries]
    for split, paths in splits.items():
        for other, theirs in splits.items():
            if split < other and paths[0] == theirs[0] and paths != theirs:
                faults.append(
                    f"`{split}` and `{other}` begin with the same folder; list the images of one in a text file"
                )
    return DataYaml(file, names, splits, "kpt_shape" in content, faults)


def read_class_list(file: Path) -> DataYaml:
    """Read a classes.txt: the name of class 0 in the first line, and so on."""
    try:
        lines = file.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, ValueError) as error:
        return DataYaml(file, faults=[f"cannot be read as text: {error}"])
    faults = [f"line {number} is empty" for number, line in enumerate(lines, start=1) if not line.strip()]
    return DataYaml(file, {index: line.strip() for index, line in enumerate(lines)}, faults=faults)


def _names(content: dict[Any, Any], faults: list[str]) -> dict[int, str]:
    given = content.get("names")
    if isinstance(given, list):
        given = dict(enumerate(given))
    if not isinstance(given, dict) or not given:
        faults.append("`names` is missing; expected a list of class names, or a mapping from class indices to them")
        return {}
    names = {}
    for index, name in given.items():
        if type(index) is not int or index < 0:
            faults.append(f"`names` has the class index {index!r}; expected a whole number from 0")
        elif not isinstance(name, (str, int, float)) or isinstance(name, bool):
            faults.append(f"class {index} is called {name!r}, which YAML takes for no text: put it in quotes")
        else:
            names[index] = str(name)
    count = content.get("nc")
    if count is not None and count != len(given):
        faults.append(f"`nc` is {count}, and `names` has {len(given)}")
    return names


def _resolve(folder: Path, root: str, entry: str) -> Path:
    """Return the first path that exists of those that an entry may mean, or the first of all."""
    bases = [folder / root, folder] if root else [folder]
    candidates = [base / entry for base in bases]
    candidates += [base / entry.removeprefix("../") for base in bases]
    found = next((path for path in candidates if path.exists()), candidates[0])
    return Path(os.path.normpath(found))
