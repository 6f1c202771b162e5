"""What the doctor says about the classes of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np

from detectors.data.annotations import Annotations
from detectors.data.problems import Kind, Problem

# A class with fewer boxes in train is hardly learned.
FEW_BOXES = 10


def boxes_per_class(annotations: Annotations) -> dict[str, int]:
    """Return how many boxes each class has, crowd regions left out."""
    counts = np.bincount(annotations.labels, minlength=len(annotations.class_names))
    return dict(zip(annotations.class_names, counts.tolist(), strict=True))


def class_findings(splits: Mapping[str, Annotations]) -> Iterator[tuple[str, Problem]]:
    """Yield (names of the splits concerned, problem): classes with few boxes or none, and what is odd in their ids."""
    counts = {name: boxes_per_class(annotations) for name, annotations in splits.items()}
    everywhere = " + ".join(splits)
    names = list(dict.fromkeys(name for split in counts.values() for name in split))
    first = next(iter(splits.values()))
    for name in names:
        found = {split: boxes.get(name, 0) for split, boxes in counts.items()}
        if not any(found.values()):
            yield everywhere, Problem(Kind.CLASS_EMPTY, first.file, name)
        elif "train" in splits:
            others = {split: number for split, number in found.items() if split != "train"}
            if not found["train"]:
                detail = ", ".join(f"{number} in {split}" for split, number in others.items() if number)
                yield "train", Problem(Kind.CLASS_UNTRAINED, splits["train"].file, f"{name}: {detail}")
            else:
                if found["train"] < FEW_BOXES:
                    yield "train", Problem(Kind.CLASS_FEW, splits["train"].file, f"{name}: {found['train']}")
                for split in (split for split, number in others.items() if not number):
                    detail = f"{name}: {found['train']} in train"
                    yield split, Problem(Kind.CLASS_UNMEASURED, splits[split].file, detail)
    yield from _category_ids(splits)


def _category_ids(splits: Mapping[str, Annotations]) -> Iterator[tuple[str, Problem]]:
    ids = {
        split: dict(zip(annotations.class_names, annotations.category_ids, strict=True))
        for split, annotations in splits.items()
    }
    (base, expected), *others = ids.items()
    for split, given in others:
        for name, number in given.items():
            if expected.get(name, number) != number:
                detail = f"{name}: {expected[name]} in {base}, {number} in {split}"
                yield f"{base} + {split}", Problem(Kind.CATEGORY_IDS, splits[split].file, detail)
    # Splits that agree have the same gaps.
    alike = " + ".join(split for split, given in ids.items() if given == expected)
    for names, given in ((alike, expected), *(item for item in others if item[1] != expected)):
        for before, after in pairwise(sorted(given.values())):
            if after > before + 1:
                file = splits[names.split(" + ")[0]].file
                yield names, Problem(Kind.CATEGORY_GAPS, file, f"none between {before} and {after}")
