"""The data doctor: looks at every annotation and every image file of a data set, and says what is wrong with it.

python -m detectors.data.doctor --data DIR [--json FILE] [--strict]

It reads COCO files, YOLO folders and Pascal VOC, and changes nothing. The exit status is 1 if there are errors (with
--strict also if there are warnings), and 0 otherwise.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from detectors.data.box_findings import repeated_boxes, tiny_boxes, turned_pictures
from detectors.data.checks import inspect_dataset
from detectors.data.class_findings import boxes_per_class, class_findings
from detectors.data.doctor_report import SEVERITIES, DoctorReport, Finding, SplitContent
from detectors.data.inspection import Inspection, Watch
from detectors.data.layout import locate_splits
from detectors.data.picture_findings import same_pictures, unnamed_files
from detectors.data.problems import INVALID_BOX_KINDS, InvalidBoxes, Kind, Problem
from detectors.input_size import InputSize
from vfmdistill.errors import DistillError, InputError


class Options(BaseModel):
    """The command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path = Field(description="folder of a data set in the format of COCO, YOLO or Pascal VOC, or a data.yaml")
    json_file: Path | None = Field(None, alias="json", description="file that receives everything that was found")
    strict: bool = Field(False, description="exit with status 1 for warnings too, not for errors alone")
    invalid_boxes: InvalidBoxes = Field(
        "raise", description="'drop' takes boxes without area or outside as training does with this option: as warnings"
    )
    input_size: InputSize = Field((640, 640), description="height,width that decides which boxes are tiny")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; return the exit status."""
    from detectors.command_line import parse_options, plain_console, track

    options = parse_options(
        Options,
        arguments,
        program="python -m detectors.data.doctor",
        description="Look for everything that is wrong with a data set; change nothing.",
    )
    console = plain_console()
    report = examine(
        options.data,
        invalid_boxes=options.invalid_boxes,
        input_size=options.input_size,
        watch=lambda items, title, number: track(items, title, console, number),
    )
    report.show(console)
    if options.json_file is not None:
        try:
            options.json_file.parent.mkdir(parents=True, exist_ok=True)
            options.json_file.write_text(report.to_json(), encoding="utf-8")
        except OSError as error:
            raise InputError(f"cannot write {options.json_file}: {error.strerror}; name another file") from None
    return report.status(options.strict)


def examine(
    data_dir: str | os.PathLike[str],
    *,
    invalid_boxes: InvalidBoxes = "raise",
    input_size: tuple[int, int] = (640, 640),
    watch: Watch | None = None,
) -> DoctorReport:
    """Look at every annotation and every image file of the splits train, val and test.

    Args:
        data_dir: see `locate_split`.
        invalid_boxes: "drop" takes boxes without area or outside for warnings, as training goes on without them then.
        input_size: (height, width) that the detector resizes pictures to; decides which boxes are tiny.
        watch: shows how far it is.

    Raises:
        InputError: there is no split.
    """
    splits = locate_splits(data_dir)
    inspections = dict(zip(splits, inspect_dataset(*splits.values(), watch=watch), strict=True))
    return diagnose(inspections, str(data_dir), invalid_boxes=invalid_boxes, input_size=input_size)


def diagnose(
    splits: Mapping[str, Inspection],
    data: str,
    *,
    invalid_boxes: InvalidBoxes = "raise",
    input_size: tuple[int, int] = (640, 640),
) -> DoctorReport:
    """Say what the inspections of a data set's splits mean together; arguments as of `examine`."""
    found = [(name, problem) for name, each in splits.items() for problem in _in_split(each, input_size)]
    annotations = {name: inspection.annotations for name, inspection in splits.items()}
    found += class_findings(annotations)
    found += same_pictures(splits)
    found += unnamed_files(splits)
    file = next(iter(annotations.values())).file
    found += [("all", Problem(Kind.SPLIT_MISSING, file, name)) for name in ("train", "val") if name not in splits]
    content = {
        name: SplitContent(
            annotations=str(each.file),
            images=len(each.file_names),
            boxes=len(each.boxes),
            classes=boxes_per_class(each),
        )
        for name, each in annotations.items()
    }
    return DoctorReport(data=data, splits=content, findings=_grouped(found, invalid_boxes))


def _in_split(inspection: Inspection, input_size: tuple[int, int]) -> Iterable[Problem]:
    """Yield everything that is to be said of one split alone."""
    annotations = inspection.annotations
    yield from inspection.problems
    yield from repeated_boxes(annotations)
    yield from tiny_boxes(inspection, input_size)
    yield from turned_pictures(inspection)
    for image, name in enumerate(annotations.file_names):
        if annotations.starts[image] == annotations.starts[image + 1]:
            yield Problem(Kind.IMAGE_WITHOUT_BOXES, annotations.file, name)


def _grouped(found: Iterable[tuple[str, Problem]], invalid_boxes: InvalidBoxes) -> list[Finding]:
    """Bring what was found into findings, errors first, otherwise in the order of the kinds."""
    groups: dict[tuple[Kind, str], list[Problem]] = {}
    for split, problem in found:
        groups.setdefault((problem.kind, split), []).append(problem)
    forgiven = INVALID_BOX_KINDS if invalid_boxes == "drop" else frozenset()
    kinds = list(Kind)
    findings = [
        Finding(
            severity="warning" if kind in forgiven else kind.severity,
            kind=kind.name.lower(),
            split=split,
            annotations=str(problems[0].file),
            heading=kind.heading,
            advice=kind.advice,
            places=[problem.detail for problem in problems],
        )
        for (kind, split), problems in sorted(groups.items(), key=lambda item: kinds.index(item[0][0]))
    ]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except DistillError as error:
        raise SystemExit(f"error: {error}") from None
