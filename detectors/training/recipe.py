"""Recipe: every setting of a training run in one flat, typed object, with the published values of each model.

Published values: RT-DETRv4 (arXiv 2510.25257, and its authors' configuration files), DEIM (arXiv 2412.04234).
Where the authors' files say one thing and their regular expressions do another, these are the values that ran.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from detectors.catalog import detector_spec
from detectors.input_size import InputSize
from vfmdistill.errors import InputError, unknown_name


class Recipe(BaseModel):
    """One training run. A field that is None follows from `epochs` (see the properties) or from the model's own row."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    # What is trained, on what, where it goes
    model: str = Field("rtdetrv4_s", description="name of the detector, see detectors.list_models()")
    data: Path | None = Field(
        None, description="folder of a COCO-format data set; without it, the embedded demonstration"
    )
    output: Path = Field(Path("runs/train"), description="folder that receives checkpoints, metrics and pictures")
    resume: bool = Field(False, description="continue the run in `output` from its newest checkpoint")
    weights: Path | None = Field(
        None, description="trained detector to start from: the authors' file, or a folder of this library's or of "
        "transformers'; classes of the same name keep what they know",
    )  # fmt: skip
    pretrained_backbone: bool = Field(
        True, description="start from ImageNet weights of the backbone (fetched by timm); not with `weights`"
    )
    backbone_weights: Path | None = Field(None, description="local file with the backbone's ImageNet weights")
    num_queries: int | None = Field(None, ge=1, description="object queries; None: the model's own")
    num_denoising: int | None = Field(None, ge=0, description="denoising queries; None: the model's own")
    invalid_boxes: Literal["raise", "drop"] = Field(
        "raise", description="what to do with boxes without area or outside"
    )

    # The teacher and its pull
    teacher: str | None = Field("dinov3_vitb16", description="name of the teacher; 'none' trains without one")
    teacher_weights: Path | None = Field(None, description="local file with the teacher's weights")
    distill_weight: float = Field(5.0, gt=0, description="initial λ, what the semantic loss is multiplied with")
    rho: float | Literal["auto", "fixed"] = Field(
        11.0, description="ρ, the wanted gradient share in percent; 'auto' calibrates it, 'fixed' keeps λ as it is"
    )
    delta: float = Field(1.0, ge=0, description="δ, half the width of the window around ρ, in percent")
    distill_default_weight: float = Field(20.0, gt=0, description="λ of the last stage, and where no gradient is seen")

    # Data
    input_size: InputSize = Field((640, 640), description="height,width of the images; one number for a square")
    batch_size: int = Field(32, ge=1, description="images per optimizer step, over all processes")
    workers: int = Field(4, ge=0, description="data-loading processes per training process")
    augment: bool = Field(True, description="photometric distortion, zoom-out and crops between the plain stages")

    # Schedule
    epochs: int = Field(132, ge=1, description="passes over the training images")
    learning_rate: float = Field(4e-4, gt=0, description="AdamW's rate for everything but the backbone")
    backbone_learning_rate: float = Field(2e-4, gt=0, description="AdamW's rate for the backbone")
    final_learning_rate: float = Field(0.5, gt=0, le=1, description="factor on the rates that the cosine ends with")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decoupled weight decay")
    undecayed: Literal["norms", "norms_and_biases"] = Field(
        "norms", description="parameters of encoder and decoder without weight decay"
    )
    backbone_norms: Literal["as_norms", "as_backbone"] = Field(
        "as_norms", description="the backbone's norms: full rate without decay, or as the backbone's other weights"
    )
    warmup_steps: int | None = Field(None, ge=0, description="quadratic warm-up; None: 2000, at most 5 % of the run")
    flat_epochs: int | None = Field(None, ge=0, description="epochs before the cosine starts; None: derived")
    plain_epochs: int | None = Field(None, ge=0, description="last epochs without augmentation; None: derived")
    clip_norm: float = Field(0.1, gt=0, description="largest L2 norm of the gradient")
    ema_decay: float = Field(0.9999, gt=0, lt=1, description="decay of the averaged weights")
    ema_warmup_steps: int = Field(1000, ge=1, description="time constant of the average's warm-up, in steps")

    # The run itself
    seed: int = Field(0, ge=0, description="seed of weights, data order, augmentation and denoising")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="'auto' takes an accelerator if there is one")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass; losses stay in float32"
    )
    evaluate_every: int = Field(1, ge=1, description="epochs between evaluations; the last epoch is always evaluated")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept, besides the best")
    log_every: int = Field(20, ge=1, description="steps between two reads of the losses from the device")

    # The published run that stage boundaries are scaled from
    published_epochs: int = Field(132, ge=1, description="epochs of the published run; boundaries scale with epochs")
    published_plain_epochs: int = Field(12, ge=0, description="last plain epochs of the published run")

    @field_validator("rho", mode="before")
    @classmethod
    def _no_flag(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML reads `off` as false, which would pass as 0
            raise ValueError("must be a number, 'auto' or 'fixed'")
        return value

    @field_validator("teacher")
    @classmethod
    def _none_is_no_teacher(cls, value: str | None) -> str | None:
        return None if value is None or value.lower() == "none" else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.teacher is None and self.teacher_weights is not None:
            raise ValueError("teacher_weights needs a teacher: name the architecture that the file belongs to")
        if self.weights is not None and self.backbone_weights is not None:
            raise ValueError("weights are those of the whole detector, the backbone's too: leave out backbone_weights")
        if isinstance(self.rho, float) and not self.delta < self.rho < 100 - self.delta:
            raise ValueError(f"the window ρ ± δ must lie between 0 and 100 percent, got {self.rho} ± {self.delta}")
        if self.last_stage < self.first_augmented or self.flat_until > self.last_stage:
            raise ValueError(
                f"stages out of order: augmentation from epoch {self.first_augmented}, cosine from {self.flat_until}, "
                f"plain from {self.last_stage} of {self.epochs}; lower flat_epochs or plain_epochs"
            )
        return self

    @property
    def last_stage(self) -> int:
        """First epoch of the last stage: no augmentation, constant learning rate; after it, λ is at its default."""
        plain = self.plain_epochs
        if plain is None:
            plain = round(self.epochs * self.published_plain_epochs / self.published_epochs)
        return max(0, self.epochs - plain)

    @property
    def first_augmented(self) -> int:
        """First epoch with augmentation: the published 4, scaled down for shorter runs."""
        return min(4, round(self.epochs * 4 / self.published_epochs))

    @property
    def flat_until(self) -> int:
        """Epoch at which the cosine starts: in the published runs 4 + half of the epochs before the last stage."""
        if self.flat_epochs is not None:
            return self.flat_epochs
        return min(self.last_stage, self.first_augmented + self.last_stage // 2)

    def warmup(self, total_steps: int) -> int:
        """Steps of the learning rate's warm-up in a run of `total_steps`."""
        return self.warmup_steps if self.warmup_steps is not None else min(2000, total_steps // 20)

    def is_augmented(self, epoch: int) -> bool:
        """Whether the images of an epoch are augmented beyond flipping and resizing."""
        return self.augment and self.first_augmented <= epoch < self.last_stage


_RTDETRV4_S = {"distill_weight": 5, "rho": 11, "delta": 1, "distill_default_weight": 20}
_RTDETRV4_M = {"distill_weight": 5, "rho": 3.5, "delta": 0.25, "distill_default_weight": 15}
_RTDETRV4_L = {"distill_weight": 15, "rho": 2, "delta": 0.1, "distill_default_weight": 15}
_RTDETRV4_X = {"distill_weight": 20, "rho": 2, "delta": 0.25, "distill_default_weight": 20}

_N = {
    "epochs": 160, "published_epochs": 160, "published_plain_epochs": 12, "batch_size": 128,
    "learning_rate": 8e-4, "backbone_learning_rate": 4e-4, "final_learning_rate": 1.0,
    "undecayed": "norms_and_biases", "backbone_norms": "as_backbone",
}  # fmt: skip
_S = {"epochs": 132, "published_epochs": 132, "published_plain_epochs": 12}
_M = {"epochs": 102, "published_epochs": 102, "published_plain_epochs": 12, "backbone_learning_rate": 4e-5}
_L = {
    "epochs": 58, "published_epochs": 58, "published_plain_epochs": 8,
    "learning_rate": 5e-4, "backbone_learning_rate": 2.5e-5, "weight_decay": 1.25e-4,
    "backbone_norms": "as_backbone",
}  # fmt: skip
_X = {**_L, "backbone_learning_rate": 5e-6}

PUBLISHED: dict[str, dict[str, Any]] = {
    "rtdetrv4_n": {**_N, **_RTDETRV4_S},  # not in the paper: DEIM-N's schedule with the injector settings of S
    "rtdetrv4_s": {**_S, **_RTDETRV4_S},
    "rtdetrv4_m": {**_M, **_RTDETRV4_M},
    "rtdetrv4_l": {**_L, **_RTDETRV4_L},
    "rtdetrv4_x": {**_X, **_RTDETRV4_X},
}


def recipe_for(model: str = "rtdetrv4_s", **overrides: Any) -> Recipe:
    """Return the published recipe of a model with some fields replaced.

    Args:
        model: a name that has a published recipe, for example "rtdetrv4_s".
        overrides: any field of `Recipe`.

    Raises:
        UnknownNameError: the model or a field does not exist.
        InputError: the model has no published recipe, or values do not fit their fields; all of these are named.
    """
    from pydantic import ValidationError

    if model not in PUBLISHED:
        detector_spec(model)  # raises if the model does not exist either
        raise InputError(f"there is no published recipe for {model!r} yet; there is one for {', '.join(PUBLISHED)}")
    for key in overrides:
        if key not in Recipe.model_fields:
            raise unknown_name("recipe field", key, Recipe.model_fields)
    try:
        return Recipe.model_validate({**PUBLISHED[model], "model": model, **overrides})
    except ValidationError as error:
        raise InputError(sentences(error)) from None


def sentences(error: Any) -> str:
    """Return one line per rejected field of a pydantic error: field, what was given, what was expected."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "recipe"
        given = "" if isinstance(item["input"], Recipe) or not item["loc"] else f" (given: {item['input']!r})"
        lines.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{given}")
    return "; ".join(lines)
