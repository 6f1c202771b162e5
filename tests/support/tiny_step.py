"""The parts of one training step of milliseconds: a tiny detector, its criterion, and a frozen random teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from support.tiny_run import register_tiny_teacher

import detectors
from detectors.training.engine import Engine
from detectors.training.optimizer import build_optimizer, parameter_groups
from detectors.training.recipe import Recipe, recipe_for
from detectors.training.step import Batch, TrainStep
from detectors.training.teaching import attach_teachers, build_teachers

CLASSES = ["ball", "bell", "boat"]


def tiny_step(output: Path, **settings: Any) -> tuple[Recipe, TrainStep, torch.optim.Optimizer]:
    """Return a recipe for images of 64 × 64 and what trains by it; keywords replace fields of the recipe."""
    register_tiny_teacher()
    given = {
        "output": output, "teacher": "tiny", "pretrained_backbone": False, "device": "cpu", "input_size": 64,
        "batch_size": 2, "num_queries": 10, "num_denoising": 4, **settings,
    }  # fmt: skip
    recipe = recipe_for("rtdetrv4_n", **given)
    engine = Engine(recipe)
    torch.manual_seed(0)
    options = {"num_queries": recipe.num_queries, "num_denoising": recipe.num_denoising}
    model = detectors.build(recipe.model, class_names=CLASSES, input_size=recipe.input_size, **options).train()
    criterion = detectors.build_criterion(model.spec, num_classes=model.num_classes)
    distiller = None
    if recipe.teachers:
        distiller = attach_teachers(recipe, model, build_teachers(recipe), recipe.distill_weight)
    injectors = None if distiller is None else distiller.injectors
    optimizer = build_optimizer(parameter_groups(model, injectors, recipe), recipe)
    network, _ = engine.prepare(model, optimizer)
    step = TrainStep(engine, model, network, criterion, distiller, clip_norm=recipe.clip_norm, seed=recipe.seed)
    return recipe, step, optimizer


def tiny_batch(*, images: int = 2, boxes: int = 3, size: int = 64, seed: int = 0) -> Batch:
    """Return noise with boxes in it; the images have the ids 40, 41, …"""
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for index in range(images):
        corners = torch.rand(boxes, 2, 2, generator=generator).sort(dim=1).values
        centres, sides = corners.mean(1), corners[:, 1] - corners[:, 0] + 0.05
        labels = torch.randint(len(CLASSES), (boxes,), generator=generator)
        target = {"labels": labels, "boxes": torch.cat([centres, sides], 1), "image_id": torch.tensor(40 + index)}
        targets.append(target)
    return torch.rand(images, 3, size, size, generator=generator), targets
