"""What can be wrong with a data set, and the one error that names all of it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from vfmdistill.errors import InputError

LISTED_PER_KIND = 50


class Kind(Enum):
    """A kind of problem: the heading under which it is listed, and what to do about it."""

    MALFORMED = ("malformed annotations", "the file has to follow COCO's format for object detection")
    DUPLICATE = ("duplicates", "every id, category name and image file may occur once")
    UNKNOWN_IMAGE = ("annotations for missing images", "add the image to `images` or remove the annotation")
    UNKNOWN_CATEGORY = (
        "annotations of unknown categories",
        "add the category to `categories` or remove the annotation",
    )
    BOX_NOT_FINITE = ("boxes with NaN or infinity", "correct them, or leave them out (--invalid-boxes drop)")
    BOX_WITHOUT_AREA = ("boxes without area", "correct them, or leave them out (--invalid-boxes drop)")
    BOX_OUTSIDE = ("boxes outside the image", "correct them, or leave them out (--invalid-boxes drop)")
    CLASSES = ("classes that do not match", "use the class list that the model or the other split was made with")
    EMPTY = ("empty data set", "at least one image and one box are needed")
    IMAGE_MISSING = ("missing images", "file names are relative to the image folder")
    IMAGE_UNREADABLE = ("unreadable or truncated images", "restore the file or remove the image from the annotations")
    IMAGE_SIZE = ("image sizes that differ from the annotations", "the boxes were drawn on another version of the file")

    @property
    def heading(self) -> str:
        return self.value[0]

    @property
    def advice(self) -> str:
        return self.value[1]


INVALID_BOX_KINDS = frozenset({Kind.BOX_NOT_FINITE, Kind.BOX_WITHOUT_AREA, Kind.BOX_OUTSIDE})


class Problem(NamedTuple):
    """One thing that is wrong: its kind, the annotation file it stands in, and the image or id concerned."""

    kind: Kind
    file: Path
    detail: str


class DatasetError(InputError):
    """A data set cannot be trained or evaluated on. `problems` holds every reason, the message at most 50 a kind."""

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


def dataset_error(problems: Iterable[Problem]) -> DatasetError:
    """Return an error that lists the problems by file and kind, in the order in which they were found."""
    found = tuple(problems)
    groups: dict[tuple[Path, Kind], list[str]] = {}
    for problem in found:
        groups.setdefault((problem.file, problem.kind), []).append(problem.detail)
    lines = [f"{len(found)} problem{'s' if len(found) != 1 else ''} in the data set"]
    for (file, kind), details in groups.items():
        lines.append(f"{file}: {kind.heading} ({len(details)}); {kind.advice}")
        lines.extend(f"  - {detail}" for detail in details[:LISTED_PER_KIND])
        if len(details) > LISTED_PER_KIND:
            lines.append(f"  - and {len(details) - LISTED_PER_KIND} more")
    return DatasetError("\n".join(lines), found)
