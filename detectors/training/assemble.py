"""From a recipe to a trainer: data, model, teacher, criterion."""

from __future__ import annotations

import torch
from accelerate import Accelerator

import detectors
import vfmdistill
from detectors.data.checks import SplitSummary, check_dataset
from detectors.data.coco import CocoDataset
from detectors.data.layout import locate_split
from vfmdistill.errors import InputError

from .recipe import Recipe
from .trainer import Trainer


def assemble(recipe: Recipe) -> Trainer:
    """Build everything that a recipe asks for; whatever is wrong with it comes out here, before the first step.

    Args:
        recipe: must name a data folder.

    Raises:
        InputError: the data, the device or an existing run does not fit; the message names everything that is wrong.
        UnknownNameError: no such model or teacher.
        WeightsError: the teacher's or the backbone's weights are not there.
    """
    if recipe.data is None:
        raise InputError("the recipe names no data: give the folder of a COCO-format data set")
    accelerator = _accelerator(recipe)
    splits = [locate_split(recipe.data, name) for name in ("train", "val")]
    # Before the images are looked through, which takes a while: weights that are not there show at once
    teacher = vfmdistill.Teacher(recipe.teacher, weights=recipe.teacher_weights) if recipe.teacher else None
    summaries: list[SplitSummary] = []
    with accelerator.main_process_first():  # one process looks through the files; what it finds stops them all
        if accelerator.is_main_process:
            summaries = check_dataset(*splits, invalid_boxes=recipe.invalid_boxes)
    train_data = CocoDataset(*splits[0], invalid_boxes=recipe.invalid_boxes, seed=recipe.seed)
    val_data = CocoDataset(*splits[1], class_names=train_data.class_names, invalid_boxes=recipe.invalid_boxes)
    overrides = {key: value for key in ("num_queries", "num_denoising") if (value := getattr(recipe, key)) is not None}
    torch.manual_seed(recipe.seed)
    model = detectors.build(
        recipe.model, class_names=train_data.class_names, pretrained_backbone=recipe.pretrained_backbone, **overrides
    ).to(accelerator.device)
    criterion = detectors.build_criterion(recipe.model, num_classes=model.num_classes)
    distiller = None
    if teacher is not None:
        torch.manual_seed(recipe.seed)  # the projector's weights do not depend on how the model was drawn
        probe = torch.zeros(1, 3, *recipe.input_size, device=accelerator.device)
        distiller = vfmdistill.attach(model, teacher, modulator=_modulator(recipe), probe=probe)
    try:
        trainer = Trainer(recipe, accelerator, model, criterion, train_data, val_data, distiller)
    except BaseException:
        if distiller is not None:
            distiller.detach()
        raise
    for summary in summaries:
        dropped = f", {summary.dropped_boxes} invalid ones left out" if summary.dropped_boxes else ""
        trainer.monitor.say(
            f"{summary.annotation_file}: {summary.images} images, {summary.boxes} boxes{dropped}, "
            f"{len(summary.class_names)} classes"
        )
    return trainer


def _accelerator(recipe: Recipe) -> Accelerator:
    from accelerate.utils import DistributedDataParallelKwargs

    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu or auto")
    # a batch without boxes leaves the denoising embedding without a gradient, on that process only
    parallel = DistributedDataParallelKwargs(find_unused_parameters=True)
    precision = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[recipe.precision]
    return Accelerator(cpu=recipe.device == "cpu", mixed_precision=precision, kwargs_handlers=[parallel])


def _modulator(recipe: Recipe) -> vfmdistill.GradientModulator | vfmdistill.FixedWeight:
    if recipe.rho == "off":
        return vfmdistill.FixedWeight(recipe.distill_weight)
    return vfmdistill.GradientModulator(
        weight=recipe.distill_weight,
        rho=recipe.rho,
        delta=None if recipe.rho == "auto" else recipe.delta,
        default_weight=recipe.distill_default_weight,
    )
