"""What can be wrong with a data set, or worth knowing of it, and the one error that names all that stops training."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Literal, NamedTuple

from vfmdistill.errors import InputError

LISTED_PER_KIND = 50

Severity = Literal["error", "warning", "note"]
InvalidBoxes = Literal["raise", "drop"]

_BOX_ADVICE = "correct them, or leave them out (--invalid-boxes drop)"


class Kind(Enum):
    """A kind of problem: how much it matters, the heading under which it is listed, and what to do about it.

    An error has to be put right: nothing can be trained or measured with it, or the figures would be wrong. A warning
    leaves both possible and wants to be looked at. A note says how something is taken.
    """

    MALFORMED = ("error", "malformed annotations", "they have to follow the format of COCO, YOLO or Pascal VOC")
    DUPLICATE = ("error", "duplicates", "every id, category name and image file may occur once")
    UNKNOWN_IMAGE = ("error", "annotations for missing images", "add the image or remove the annotation")
    UNKNOWN_CATEGORY = ("error", "annotations of unknown categories", "add the category or remove the annotation")
    BOX_NOT_FINITE = ("error", "boxes with NaN or infinity", _BOX_ADVICE)
    BOX_INVERTED = ("error", "boxes with negative sides", _BOX_ADVICE)
    BOX_WITHOUT_AREA = ("error", "boxes without area", _BOX_ADVICE)
    BOX_OUTSIDE = ("error", "boxes outside the image", _BOX_ADVICE)
    CLASSES = (
        "error",
        "classes that do not match",
        "use the class list that the model or the other split was made with",
    )
    EMPTY = ("error", "empty data set", "at least one image and one box are needed")
    IMAGE_MISSING = ("error", "missing images", "file names are relative to the image folder")
    IMAGE_UNREADABLE = (
        "error",
        "unreadable or truncated images",
        "restore the file or remove the image from the annotations",
    )
    IMAGE_SIZE = (
        "error",
        "image sizes that differ from the annotations",
        "the boxes were drawn on another version of the file",
    )
    # From here on, what only the doctor looks for.
    CATEGORY_IDS = (
        "error",
        "category ids that differ between splits",
        "give each class one id: results in COCO's format would name the wrong class",
    )
    LEAK = (
        "error",
        "the same picture in several splits",
        "keep it in one of them: what was trained on cannot be measured on",
    )
    REPEATED_PICTURE = ("warning", "the same picture several times", "keep one, with all of its boxes")
    BOX_REPEATED = (
        "warning",
        "boxes that lie on another one of the same class",
        "remove all but one: each of them is a target, and one detection can match only one",
    )
    BOX_TINY = ("warning", "tiny boxes", "remove the slips of the mouse; for small objects raise --input-size")
    CLASS_UNTRAINED = (
        "warning",
        "classes without a box in train that other splits have",
        "their AP is 0 and counts in the mean: move some of their images to train",
    )
    CLASS_FEW = ("warning", "classes with few boxes in train", "collect more, or join classes")
    LABELS_WITHOUT_IMAGE = ("warning", "labels without an image", "restore the image or remove its labels")
    SPLIT_MISSING = ("warning", "splits that are not there", "training needs train and val")
    ORIENTATION_UNCLEAR = (
        "warning",
        "EXIF orientations that leave open what the boxes refer to",
        "they are taken to refer to the stored pixels, as in COCO, and turn with them: look at one, and if that is "
        "wrong store the pictures upright",
    )
    ORIENTATION = (
        "note",
        "pictures with an EXIF orientation",
        "they are turned upright, with their boxes where these refer to the stored pixels",
    )
    CLASS_UNMEASURED = (
        "note",
        "classes with boxes in train and none here",
        "the figures of this split say nothing about them",
    )
    CLASS_EMPTY = ("note", "classes without any box", "remove them from the class list if they are not to come")
    IMAGE_WITHOUT_BOXES = ("note", "images without boxes", "they train as background; check that nothing was forgotten")
    CROWD = (
        "note",
        "crowd regions and difficult objects",
        "they are no training targets, and detections there count neither as right nor as wrong",
    )
    COUNTED_FROM_ZERO = (
        "note",
        "coordinates below 1 where Pascal VOC counts from 1",
        "all others are taken to count from 1: boxes of a tool that counts from 0 begin a pixel too early",
    )
    CATEGORY_GAPS = ("note", "category ids with gaps", "nothing to do: classes are numbered anew from 0")
    UNNAMED_FILES = ("note", "image files that no annotation names", "they are left out")

    @property
    def severity(self) -> Severity:
        severity: Severity = self.value[0]
        return severity

    @property
    def heading(self) -> str:
        return self.value[1]

    @property
    def advice(self) -> str:
        return self.value[2]


INVALID_BOX_KINDS = frozenset({Kind.BOX_NOT_FINITE, Kind.BOX_INVERTED, Kind.BOX_WITHOUT_AREA, Kind.BOX_OUTSIDE})


class Problem(NamedTuple):
    """One thing that is wrong: its kind, the annotations it stands in, and the image, id or line concerned."""

    kind: Kind
    file: Path
    detail: str


class DatasetError(InputError):
    """A data set cannot be trained or evaluated on. `problems` holds every reason, the message at most 50 a kind."""

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


def refused(problems: Iterable[Problem], invalid_boxes: InvalidBoxes) -> list[Problem]:
    """Return the problems that stop training and evaluation; those of single boxes do not where they are dropped."""
    forgiven = INVALID_BOX_KINDS if invalid_boxes == "drop" else frozenset()
    return [problem for problem in problems if problem.kind.severity == "error" and problem.kind not in forgiven]


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
