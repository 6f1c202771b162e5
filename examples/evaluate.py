"""Measure a detector on a data set in COCO's format: COCO's figures, by size and by class, and what is taken for what.

    python examples/evaluate.py --model runs/train --data cards
    python examples/evaluate.py --model detector --data coco --invalid-boxes drop --json figures.json

The data set has to have the detector's classes: the same names, or for a detector without names the same category ids.
A line without an object to measure on has a dash.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from detectors.command_line import PredictorOptions, parse_options, plain_console, track
from detectors.confusion import BACKGROUND, Confusion
from detectors.data.checks import check_dataset
from detectors.data.coco import CocoDataset
from detectors.data.layout import locate_split
from detectors.evaluation import SIZES, CocoEvaluator
from detectors.predictor import Predictor
from vfmdistill import DistillError
from vfmdistill.errors import InputError


class Options(PredictorOptions):
    """The command line."""

    data: Path = Field(description="folder of a data set in the format of COCO, YOLO or Pascal VOC")
    split: Literal["train", "val", "test"] = Field("val", description="which part of it")
    invalid_boxes: Literal["raise", "drop"] = Field(
        "raise", description="'drop' accepts boxes without area or outside; they count as COCO's own evaluation does it"
    )
    workers: int = Field(2, ge=0, description="processes that read images")
    threshold: float = Field(0.5, ge=0, le=1, description="lowest score of what counts in the confusion of classes")
    iou: float = Field(0.5, gt=0, le=1, description="lowest IoU of a match in the confusion of classes")
    json_file: Path | None = Field(None, alias="json", description="file that receives all figures")
    results: Path | None = Field(None, description="file that receives the detections, in COCO's results format")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Do what the command line asks for; return what --json writes."""
    options = parse_options(
        Options, arguments, program="evaluate.py", description="Measure a detector on a COCO-format data set."
    )
    console = plain_console()
    predictor = options.open(threshold=0.0)
    console.print(f"weights: {options.weights}", soft_wrap=True)
    data = open_data(predictor, options)
    evaluator = CocoEvaluator(data.ground_truth(), data.category_ids)
    collect(predictor, data, evaluator, options, console)
    confusion = evaluator.confusion(options.threshold, options.iou)
    report = describe(options, evaluator, confusion)
    for path, content in ((options.json_file, report), (options.results, evaluator.results())):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content), encoding="utf-8")
    for title, table in (
        (f"{report['images']} images of {options.data}", size_table(report)),
        ("Classes", class_table(report)),
        (f"Most frequent mistakes (score ≥ {options.threshold:g}, IoU ≥ {options.iou:g})", mistake_table(confusion)),
    ):
        console.print(title, style="bold", soft_wrap=True)
        console.print(table)
        console.print()
    return report


def open_data(predictor: Predictor, options: Options) -> CocoDataset:
    """Return the split with its classes in the order of the detector's, after all of it was looked through.

    Raises:
        DatasetError: everything that is wrong with its annotations and images, classes that are others among it.
        InputError: there is no such split, or the classes cannot be told apart.
    """
    split = locate_split(options.data, options.split)
    names, ids = predictor.model.class_names, predictor.model.category_ids
    if names is None:
        own = CocoDataset(*split, invalid_boxes=options.invalid_boxes)
        name_of = dict(zip(own.category_ids, own.class_names, strict=True))
        if ids is None or set(ids) != name_of.keys():
            known = "no category ids either" if ids is None else f"the category ids {sorted(ids)}"
            raise InputError(
                f"the detector knows no class names and {known}, so that its {predictor.model.num_classes} classes "
                f"cannot be told apart from those of {split.annotation_file}, {name_of}; set model.class_names and "
                "save it anew."
            )
        names = [name_of[key] for key in ids]
    check_dataset(split, class_names=names, invalid_boxes=options.invalid_boxes)
    return CocoDataset(*split, class_names=names, invalid_boxes=options.invalid_boxes)


def collect(
    predictor: Predictor, data: CocoDataset, evaluator: CocoEvaluator, options: Options, console: Console
) -> None:
    """Let the predictor look at all images."""
    loader = DataLoader(data, batch_size=options.batch_size, num_workers=options.workers, collate_fn=list)
    for samples in track(loader, "evaluating", console, len(loader)):
        found = predictor([image for image, _ in samples])
        evaluator.process([int(target["image_id"]) for _, target in samples], [each.as_dict() for each in found])


def describe(options: Options, evaluator: CocoEvaluator, confusion: Confusion) -> dict[str, Any]:
    """Return everything that was measured, as JSON takes it."""
    counts = evaluator.object_counts()
    classes = [
        {"name": name, "category_id": key, "objects": counts[name], **figures}
        for key, (name, figures) in zip(evaluator.category_ids, evaluator.class_figures().items(), strict=True)
    ]
    return {
        "model": str(options.weights),
        "data": str(options.data),
        "split": options.split,
        "images": len(evaluator),
        "objects": {size: sum(each[size] for each in counts.values()) for size in SIZES},
        "figures": evaluator.evaluate(),
        "classes": classes,
        "confusion": {
            "threshold": confusion.threshold,
            "iou": confusion.iou,
            "rows": "true class",
            "columns": "class found",
            "classes": [*confusion.class_names, BACKGROUND],
            "matrix": confusion.matrix.tolist(),
        },
    }


def size_table(report: dict[str, Any]) -> Table:
    """Return COCO's twelve figures, a line for each size of objects."""
    columns = ("AP", "AP50", "AP75", "AR_1", "AR_10", "AR_100")
    table = _table("size", "objects", *columns)
    for size, number in report["objects"].items():
        names = columns if size == "all" else (f"AP_{size}", None, None, None, None, f"AR_{size}")
        table.add_row(size, str(number), *(_number(report["figures"], name) for name in names))
    return table


def class_table(report: dict[str, Any]) -> Table:
    """Return the figures of each class."""
    columns = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")
    table = _table("class", "objects", *columns)
    for entry in report["classes"]:
        table.add_row(entry["name"], str(entry["objects"]["all"]), *(_number(entry, name) for name in columns))
    return table


def mistake_table(confusion: Confusion) -> Table:
    """Return the most frequent mistakes."""
    table = _table("object", "cases", "share", "found as")
    for mistake in confusion.most_frequent():
        table.add_row(mistake.true, str(mistake.cases), f"{mistake.share:.1%}", mistake.found)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if number == 0 or column == "found as" else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    return table


def _number(figures: dict[str, Any], name: str | None) -> str:
    if name is None:
        return ""
    return "–" if figures[name] < 0 else f"{figures[name]:.3f}"


if __name__ == "__main__":
    try:
        main()
    except DistillError as error:
        raise SystemExit(f"error: {error}") from None
