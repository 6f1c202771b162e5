"""Replay: runs a bad step again and says where it went bad.

    python -m detectors.training.replay runs/train/bad_steps/rank_0/step_00000012

Exit status: 0 if losses and gradients are finite, 1 if they are not, 2 if the step could not be run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import CliPositionalArg
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import detectors
import vfmdistill
from detectors.command_line import parse_options, plain_console
from detectors.losses.finite import NonFiniteError, check_finite
from vfmdistill.errors import DistillError, InputError

from .engine import Engine
from .finite_trace import FiniteTrace, describe_faults
from .recipe import Recipe
from .step_dump import StepDump
from .teaching import attach_teachers, build_teachers

SHOWN = 10  # names of parameters


class ReplayOptions(BaseModel):
    """The options of the command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dump: CliPositionalArg[Path] = Field(description="folder of a step: bad_steps/rank_R/step_NNNNNNNN of a run")
    teacher: bool = Field(True, description="compute the semantic loss too, if the run had a teacher")
    teacher_weights: Path | None = Field(None, description="file with the teacher's weights; None: the run's")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="'auto' takes what the run had, if it is there")
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(None, description="None: the run's")


@dataclass
class Replay:
    """What came of a step.

    Attributes:
        losses: of each part as far as they could be computed, by name.
        fault: why the step is bad; None if it is not.
        before: inputs and weights that were not finite to begin with, in words.
        output: the first module whose output is not finite, in words.
        gradient: the first module, coming back from the losses, whose output's gradient is not finite, in words.
        parameters: names of those whose gradients are not finite.
        norm: L2 norm of all gradients; None without a backward, which losses that are not finite prevent.
    """

    losses: list[dict[str, float]] = field(default_factory=list)
    fault: str | None = None
    before: list[str] = field(default_factory=list)
    output: str | None = None
    gradient: str | None = None
    parameters: list[str] = field(default_factory=list)
    norm: float | None = None


def replay(dump: StepDump, recipe: Recipe, *, teacher: bool = True) -> Replay:
    """Run forward, losses and backward of a step, with the random numbers and the precision of the run.

    On the CPU the losses are bit for bit those of the run, where that had one process and an uncompiled network.

    Args:
        dump: the step.
        recipe: the dump's, possibly with another device, precision or file for the teacher's weights; neither sharded
            nor compiled.
        teacher: whether to compute the semantic loss, if the run had one.

    Raises:
        DistillError: the recipe's device is not there, its teacher cannot be had, or the weights do not fit.
    """
    engine = Engine(recipe)
    if engine.device.type == "cpu":
        torch.set_num_threads(dump.threads)
    model = engine.place(_detector(dump)).train()
    criterion = detectors.build_criterion(model.spec, num_classes=model.num_classes)
    parts: dict[str, nn.Module] = {"": model}
    distiller = None
    if teacher and dump.injectors is not None and dump.weight is not None:
        distiller = _attach(dump, recipe, model)
        parts["injectors"] = distiller.injectors
    parameters = {name: p for prefix, part in parts.items() for name, p in part.named_parameters(prefix=prefix)}
    counts = None if dump.counts is None else torch.tensor(dump.counts, device=engine.device)

    found = Replay(before=_faults_before(dump))
    trace = FiniteTrace(parts)
    dump.rng.restore(engine.device)
    try:
        with trace:
            for number, (images, targets) in enumerate(dump.batches):
                images = images.to(engine.device)
                labelled = [{key: value.to(engine.device) for key, value in target.items()} for target in targets]
                with engine.autocast():
                    outputs = model(images, labelled)
                losses: dict[str, Tensor] = criterion(outputs, labelled, counts=counts)
                if distiller is not None:
                    semantic = distiller.loss(images)
                    if distiller.looks:
                        losses["loss_semantic"] = semantic
                found.losses.append({name: value.item() for name, value in losses.items()})
                if found.fault is None:
                    found.fault = _fault(found.losses[-1], f"part {number}")
                if found.fault is None:
                    (torch.stack(list(losses.values())).sum() / len(dump.batches)).backward()
    except NonFiniteError as error:
        found.fault = found.fault or str(error)
    finally:
        if distiller is not None:
            distiller.detach()
    if found.fault is None:
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        found.parameters = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        found.norm = float(nn.utils.get_total_norm(gradients.values()))
        if not math.isfinite(found.norm):
            found.fault = f"the norm of the gradient is {found.norm}"
    found.output, found.gradient = trace.output, trace.gradient
    return found


def _fault(losses: dict[str, float], where: str) -> str | None:
    try:
        check_finite(losses, where)
    except NonFiniteError as error:
        return str(error)
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Replay the step that the command line names, print what comes of it, and return the exit status."""
    console = plain_console()
    try:
        options = parse_options(
            ReplayOptions,
            arguments,
            program="python -m detectors.training.replay",
            description="Run a bad step of a training run again and say where it went bad.",
        )
        dump = StepDump.read(options.dump)
        recipe = _recipe(dump, options)
        found = replay(dump, recipe, teacher=options.teacher)
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _show(dump, recipe, options, found, console)
    return 0 if found.fault is None else 1


def _recipe(dump: StepDump, options: ReplayOptions) -> Recipe:
    device = options.device
    if device == "auto":
        device = "cuda" if dump.device == "cuda" and torch.cuda.is_available() else "cpu"
    changes = {
        "device": device,
        "precision": options.precision or dump.recipe.precision,
        "teacher_weights": options.teacher_weights or dump.recipe.teacher_weights,
        "shard": False,
        "compile": False,
        "tracker": None,
    }
    return dump.recipe.model_copy(update=changes)


def _detector(dump: StepDump) -> detectors.Detector:
    built = dump.detector
    model = detectors.build(
        built["name"], num_classes=built["num_classes"], class_names=built["class_names"], **built["options"]
    )
    try:
        model.load_state_dict(dump.model)
    except RuntimeError as error:
        raise InputError(f"the weights of the step do not fit a {built['name']}: {error}") from None
    return model


def _attach(dump: StepDump, recipe: Recipe, model: detectors.Detector) -> vfmdistill.Distiller:
    try:
        teachers = build_teachers(recipe)
    except DistillError as error:
        raise InputError(f"{error} Name its file with --teacher-weights, or leave it out with --no-teacher.") from error
    distiller = attach_teachers(recipe, model, teachers, 0.0 if dump.weight is None else dump.weight)
    told = {"injectors": dump.injectors or {}, "teaching": dump.teaching or {}}
    distiller.load_state_dict(distiller.state_dict() | told)
    return distiller


def _faults_before(dump: StepDump) -> list[str]:
    """Say which images, boxes and weights were not finite before anything was computed."""
    found = []
    for number, (images, targets) in enumerate(dump.batches):
        for index, (image, target) in enumerate(zip(images, targets, strict=True)):
            name = f"image {index} of part {number}"
            if "image_id" in target:
                name += f" (id {int(target['image_id'])})"
            for what, tensor in ((name, image), (f"boxes of {name}", target["boxes"])):
                if faults := describe_faults(tensor):
                    found.append(f"{what}: {faults}")
    for name, tensor in chain(dump.model.items(), (dump.injectors or {}).items()):
        if tensor.is_floating_point() and (faults := describe_faults(tensor)):
            found.append(f"{name}: {faults} of {tensor.numel()} values")
    return found


def _show(dump: StepDump, recipe: Recipe, options: ReplayOptions, found: Replay, console: Console) -> None:
    sizes = ", ".join(" × ".join(map(str, images.shape)) for images, _ in dump.batches)
    boxes = sum(len(target["boxes"]) for _, targets in dump.batches for target in targets)
    console.print(f"step {dump.step} in epoch {dump.epoch}, process {dump.rank} of {dump.processes}: {dump.reason}")
    console.print(f"{dump.detector['name']} in {recipe.precision} on {recipe.device}: images {sizes}, {boxes} boxes")
    for note in _differences(dump, recipe, options):
        console.print(f"note: {note}")
    for fault in found.before[:SHOWN]:
        console.print(f"not finite before the step: {fault}")
    if len(found.before) > SHOWN:
        console.print(f"not finite before the step: {len(found.before) - SHOWN} more")
    _show_losses(dump, found, console)
    for title, value in (("forward", found.output), ("backward", found.gradient)):
        if value is not None and found.fault is not None:
            console.print(f"first not finite, {title}: {value}")
    if found.parameters:
        more = f" and {len(found.parameters) - SHOWN} more" if len(found.parameters) > SHOWN else ""
        console.print(f"parameters with such gradients: {', '.join(found.parameters[:SHOWN])}{more}")
    if found.norm is not None:
        console.print(f"norm of the gradient: {found.norm:.9g}")
    console.print("losses and gradients are finite" if found.fault is None else f"bad: {found.fault}")


def _show_losses(dump: StepDump, found: Replay, console: Console) -> None:
    """Print the losses of the run and those of now; nine digits tell any two float32 numbers apart."""
    table = Table("part", "loss", "in the run", "now")
    compared = different = 0
    for number in range(max(len(dump.losses), len(found.losses))):
        then, now = (part[number] if number < len(part) else {} for part in (dump.losses, found.losses))
        for name in dict.fromkeys([*then, *now]):
            values = [f"{part[name]:.9g}" if name in part else "" for part in (then, now)]
            table.add_row(str(number), name, *values)
            if all(values):
                compared += 1
                different += repr(then[name]) != repr(now[name])
    if table.row_count:
        console.print(table)
    if compared:
        console.print(f"{compared - different} of {compared} losses are exactly those of the run")


def _differences(dump: StepDump, recipe: Recipe, options: ReplayOptions) -> list[str]:
    """Say what is not here as it was in the run."""
    notes = []
    if dump.device != recipe.device:
        notes.append(f"the run computed on {dump.device}: random numbers and last digits are others here")
    if dump.recipe.precision != recipe.precision:
        notes.append(f"the run computed in {dump.recipe.precision}")
    if dump.recipe.compile:
        notes.append("the run's network was compiled: last digits may be others here")
    if dump.processes > 1:
        notes.append("batch norms see the images of this process alone, not those of all processes")
        if dump.counts is None:
            notes.append("losses are divided by the objects of this process alone, not by the mean over processes")
    if dump.injectors is not None and not options.teacher:
        notes.append("without the teacher: the semantic loss is left out")
    return notes


if __name__ == "__main__":
    raise SystemExit(main())
