"""What a probe of features found, as a line of JSON holds it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ProbeFigures(BaseModel):
    """What a linear classifier makes of the features at the centres of objects.

    Attributes:
        accuracy: share of the validation objects whose class is right, in [0, 1], as are all shares here.
        train_accuracy: the same of the training objects, which it was fitted to.
        held_out: the same of training objects in the cross-validation that chose the strength of L2.
        chance: what is right on average if classes are guessed as often as the training objects have them.
        shuffled: mean accuracy of classifiers that were fitted to permuted labels, with the same L2: what they get
            above chance would be the probe's own doing.
        strength: of L2.
        at_edge: it is the smallest or largest of those to choose from.
        train_objects, objects: how many there are to train and to validate on.
        grid: (height, width) of the map in cells.
        channels: of the map.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    accuracy: float
    train_accuracy: float
    held_out: float
    chance: float
    shuffled: float
    strength: float
    at_edge: bool
    train_objects: int
    objects: int
    grid: tuple[int, int]
    channels: int


class Alignment(BaseModel):
    """Linear CKA between a student's map and a teacher's, cell by cell, on validation images.

    Attributes:
        plain, debiased: of maps of the same images.
        plain_floor, debiased_floor: of the student's maps and the teacher's maps of other images: what alike layouts
            of the images alone amount to.
        images: that were compared.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plain: float
    debiased: float
    plain_floor: float
    debiased_floor: float
    images: int


class ProbeRecord(BaseModel):
    """What was found in one network.

    Attributes:
        arm: its arm; ``"untrained"`` or ``"teacher NAME"`` for what stands beside the arms.
        seed: of the run, or of random weights; None for a teacher.
        run: folder of the run; None for what stands beside.
        figures: of the linear probe.
        alignment: by teacher.
        recipe: settings of the run that say what it was trained on and by whom.
        settings: of the probe.
        environment: versions and hardware.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    arm: str
    seed: int | None = None
    run: str | None = None
    figures: ProbeFigures
    alignment: dict[str, Alignment] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
