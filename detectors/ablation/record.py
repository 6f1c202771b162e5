"""What is kept of an ablation: its arms, and what came of every run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from .arms import Arm


class EpochRecord(BaseModel):
    """One epoch of a run; None is what was not measured in it.

    Attributes:
        epoch: its number, from 0.
        AP, AP50, AP75: COCO's figures in [0, 1], of the averaged model.
        loss: mean training loss of a step, the semantic loss included.
        semantic_loss: its mean without λ.
        weight: λ.
        share: mean share of the tap in percent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    AP: float | None = None
    AP50: float | None = None
    AP75: float | None = None
    loss: float | None = None
    semantic_loss: float | None = None
    weight: float | None = None
    share: float | None = None


class TrialRecord(BaseModel):
    """What came of one run: one arm with one seed.

    Attributes:
        arm: name of the arm.
        seed: of weights, data order, augmentation and denoising noise; arms are paired by it.
        folder: of the run, relative to the ablation's.
        figures: COCO's twelve figures in [0, 1] after the last epoch, of the averaged model, by name ("AP", "AP50",
            …); none is −1: what could not be measured is left out.
        per_class: AP of each class after the last epoch, by name; None for a class without validation objects.
        best: AP and number of the epoch with the highest AP ("AP", "epoch").
        epochs: all epochs in order.
        step_seconds: median over the epochs of the mean seconds of a training step, evaluation not included.
        peak_memory: bytes, and which kind of memory that was ("bytes", "of"); None where it cannot be known.
        seconds: of the whole run.
        teachers: the specs of the teachers.
        recipe: every setting of the run.
        command: what reproduces this run alone.
        environment: "versions", "hardware" and "platform", as `training.environment.describe` gives them.
        host: name of the machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    seed: int
    folder: str
    figures: dict[str, float]
    per_class: dict[str, float | None] = Field(default_factory=dict)
    best: dict[str, float] = Field(default_factory=dict)
    epochs: list[EpochRecord] = Field(default_factory=list)
    step_seconds: float | None = None
    peak_memory: dict[str, Any] | None = None
    seconds: float | None = None
    teachers: list[dict[str, Any]] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    command: str = ""
    environment: dict[str, Any] = Field(default_factory=dict)
    host: str = ""


class Missing(BaseModel):
    """A run that there is no record of.

    Attributes:
        arm, seed: which one.
        reason: why, for example ``"waiting"``, ``"running on HOST"`` or the error that ended it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    seed: int
    reason: str


class AblationRecord(BaseModel):
    """An ablation, finished or not: all that its report is made from.

    Attributes:
        name: of the study.
        arms: in the order that they are shown.
        recipe: the recipe that all arms share, JSON-able.
        records: of the runs that are done, in any order.
        missing: the runs that are not.
        command: what reproduces the whole of it.
        notes: sentences about it for the report, such as why the schedule is as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arms: list[Arm]
    recipe: dict[str, Any]
    records: list[TrialRecord]
    missing: list[Missing] = Field(default_factory=list)
    command: str = ""
    notes: list[str] = Field(default_factory=list)
