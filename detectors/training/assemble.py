"""From a recipe to a trainer: data, model, teacher, criterion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

import detectors
import vfmdistill
from detectors.checkpoints import LoadReport
from detectors.data.checks import SplitSummary, inspect_dataset, summarise
from detectors.data.coco import CocoDataset
from detectors.data.doctor import diagnose
from detectors.data.doctor_report import DoctorReport
from detectors.data.layout import Split, locate_split
from vfmdistill.errors import InputError, WeightsError

from .batch_size import find_batch_size
from .checkpoint import newest_checkpoint, read_checkpoint
from .dry_run import heaviest_images
from .ema import WeightAverage
from .engine import Engine
from .initial_weights import load_initial_weights
from .recipe import Recipe
from .snapshot import FOLDER
from .student_weights import StudentReport, load_student_weights
from .teaching import Teachers, attach_teachers, build_teachers, modulator_of
from .tracker import check_tracker
from .trainer import Trainer


def assemble(recipe: Recipe) -> Trainer:
    """Build everything that a recipe asks for; whatever is wrong with it comes out here, before the first step.

    Args:
        recipe: must name a data folder.

    Raises:
        InputError: the data, the device or an existing run does not fit; the message names everything that is wrong.
        UnknownNameError: no such model or teacher.
        WeightsError: the weights to start from, the teacher's or the backbone's are not there or do not fit.
    """
    if recipe.data is None:
        raise InputError("the recipe names no data: give the folder of a data set")
    if recipe.output.exists() and not recipe.output.is_dir():
        raise InputError(f"the output {recipe.output} is a file; name a folder with --output")
    check_tracker(recipe.tracker)
    engine = Engine(recipe)
    splits = [locate_split(recipe.data, name) for name in ("train", "val")]
    newest = newest_checkpoint(recipe.output / FOLDER)
    resumed = newest is not None  # then all weights but the teacher's are in there
    # Before the images are looked through, which takes a while: weights that are not there show at once.
    if recipe.weights is not None and not resumed and not recipe.weights.exists():
        raise WeightsError(f"there is no file or folder {recipe.weights} to start from.")
    if recipe.init is not None and not resumed and not recipe.init.is_file():
        raise WeightsError(
            f"there is no file {recipe.init} to start from. Expected the weights of a network, such as the "
            "student.safetensors of examples/pretrain_student.py; folders go to --weights."
        )
    teachers = build_teachers(recipe)
    # A resumed run was looked through when it began; that its boxes are still the same is compared.
    summaries, findings = ([], None) if resumed or not recipe.check_data else _checked(splits, recipe, engine)
    train_data = CocoDataset(*splits[0], invalid_boxes=recipe.invalid_boxes, seed=recipe.seed)
    val_data = CocoDataset(*splits[1], class_names=train_data.class_names, invalid_boxes=recipe.invalid_boxes)

    torch.manual_seed(recipe.seed)
    model = _model(recipe, train_data, resumed)
    if recipe.batch_size == "auto":
        recipe = recipe.model_copy(
            update={"batch_size": _batch_size(recipe, engine, model, teachers, train_data, newest)}
        )
    report = None if resumed else _load(recipe, model)
    model = engine.place(model)
    model.category_ids = train_data.category_ids
    criterion = detectors.build_criterion(model.spec, num_classes=model.num_classes)
    average = WeightAverage(model, recipe.ema_decay, recipe.ema_warmup_steps)
    distiller = None
    if teachers:
        torch.manual_seed(recipe.seed)  # the projector's weights do not depend on how the model was drawn
        distiller = attach_teachers(recipe, model, teachers, modulator_of(recipe))
    try:
        facts = {
            "teachers": [_described(teacher) for teacher in teachers],
            "data": [_summary(summary) for summary in summaries],
        }
        trainer = Trainer(recipe, engine, model, criterion, train_data, val_data, average, distiller, facts=facts)
    except BaseException:
        if distiller is not None:
            distiller.detach()
        raise
    if findings is not None and findings.findings:
        findings.show(trainer.monitor.console)
    for summary in summaries:
        dropped = f", {summary.dropped_boxes} invalid ones left out" if summary.dropped_boxes else ""
        trainer.monitor.say(
            f"{summary.annotation_file}: {summary.images} images, {summary.boxes} boxes{dropped}, "
            f"{len(summary.class_names)} classes"
        )
    if report is not None:
        trainer.monitor.say(f"starting from {recipe.weights or recipe.init}:\n{indent(str(report), '  ')}")
    return trainer


def _checked(splits: Sequence[Split], recipe: Recipe, engine: Engine) -> tuple[list[SplitSummary], DoctorReport | None]:
    """Look through the data in the first process; what cannot be trained on stops them all."""
    summaries: list[SplitSummary] = []
    findings = None
    failure: InputError | None = None
    if engine.is_main:
        try:
            inspections = inspect_dataset(*splits)
            summaries = summarise(inspections, recipe.invalid_boxes)
            findings = diagnose(
                dict(zip(("train", "val"), inspections, strict=True)),
                str(recipe.data),
                invalid_boxes=recipe.invalid_boxes,
                input_size=recipe.input_size,
            )
        except InputError as error:
            failure = error
    (message,) = broadcast_object_list([None if failure is None else str(failure)])
    if message is not None:
        raise failure or InputError(message)
    return summaries, findings


def _model(recipe: Recipe, data: CocoDataset, resumed: bool) -> detectors.Detector:
    overrides = {key: value for key in ("num_queries", "num_denoising") if (value := getattr(recipe, key)) is not None}
    fetched = recipe.pretrained_backbone and recipe.init is None
    untrained = recipe.weights is None and not resumed
    return detectors.build(
        recipe.model,
        class_names=data.class_names,
        pretrained_backbone=untrained and (recipe.backbone_weights or fetched),
        input_size=recipe.input_size,
        **overrides,
    )


def _load(recipe: Recipe, model: detectors.Detector) -> LoadReport | StudentReport | None:
    """Fill a model with the weights that its recipe names."""
    if recipe.weights is not None:
        return load_initial_weights(model, recipe.weights)
    return None if recipe.init is None else load_student_weights(model, recipe.init)


def _batch_size(
    recipe: Recipe,
    engine: Engine,
    model: detectors.Detector,
    teachers: Teachers,
    data: CocoDataset,
    newest: Path | None,
) -> int:
    """Return the batch size that "auto" stands for: a resumed run keeps its own."""
    if newest is not None:
        _, state = read_checkpoint(newest)
        return int(state["recipe"]["batch_size"])
    heaviest = heaviest_images(recipe, data.box_counts)
    return find_batch_size(recipe, engine, model, teachers, heaviest=heaviest, limit=len(data))


def _described(teacher: vfmdistill.Teacher) -> dict[str, Any]:
    return teacher.spec.model_dump(mode="json", exclude_none=True)


def _summary(summary: SplitSummary) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in summary._asdict().items()}
