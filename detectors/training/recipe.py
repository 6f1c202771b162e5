"""Recipe: every setting of a training run in one flat, typed object; `published.py` has each model's values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from detectors.catalog import CATALOG, detector_spec
from detectors.data.augmentation import Augmentation
from detectors.input_size import InputSize
from vfmdistill.errors import InputError, unknown_name

from .published import PUBLISHED
from .stages import Stages

# Settings that say where a run takes place, not what it computes
OF_PLACE = frozenset(
    {"data", "output", "resume", "device", "workers", "keep_checkpoints", "save_every", "log_every", "tracker",
     "dry_run", "check_data", "teacher_weights", "teacher_cache", "backbone_weights"}
)  # fmt: skip


class Recipe(BaseModel):
    """One training run. A field that is None follows from `epochs` (see `stages`) or from the model's own row.

    Defaults are those of RT-DETRv4-S; `recipe_for` has every model's own.
    """

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
    init: Path | None = Field(
        None, description="weights of a network of the same names to start from, such as the student of "
        "examples/pretrain_student.py: what was trained there and fits by name and shape is taken",
    )  # fmt: skip
    pretrained_backbone: bool = Field(
        True, description="start from ImageNet weights of the backbone (fetched by timm); not with `weights` or `init`"
    )
    backbone_weights: Path | None = Field(None, description="local file with the backbone's ImageNet weights")
    num_queries: int | None = Field(None, ge=1, description="object queries; None: the model's own")
    num_denoising: int | None = Field(None, ge=0, description="denoising queries; None: the model's own")
    invalid_boxes: Literal["raise", "drop"] = Field(
        "raise", description="what to do with boxes without area or outside"
    )

    # The teacher and its pull
    teacher: str | None = Field(
        "dinov3_vitb16",
        description="name of the teacher, or several with their shares: dinov2_vitb14=2,siglip2_base=1; 'none' trains "
        "without one",
    )
    teacher_weights: Path | None = Field(None, description="local file with the teacher's weights")
    teacher_control: Literal["random", "shuffled"] | None = Field(
        None, description="a teacher that must not help, for comparison: random weights, or maps of other images"
    )
    teacher_cache: Path | None = Field(
        None, description="folder that keeps the teachers' features; pays without augmentation and changing sizes"
    )
    teacher_precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="of the teacher's forward pass; 'auto': half where the device is good at it"
    )
    teacher_dense: Literal["tokens", "value"] | None = Field(
        None, description="how its map is read: last tokens, or the last block's values; None: as suits the teacher"
    )
    teacher_blocks: list[PositiveInt] | None = Field(
        None, description="blocks whose maps are joined, counted from 1; None: the last"
    )
    teacher_every: int = Field(1, ge=1, description="steps from one semantic loss to the next")
    tap: str | None = Field(
        None, description="path of the module whose map is aligned, encoder.top_down.0; None: the deepest map, AIFI's"
    )
    projector: Literal["linear", "mlp", "conv"] = Field(
        "linear", description="from the student's width to the teacher's"
    )
    objective: Literal["cosine", "mse", "smooth_l1", "relational", "channel_wise", "pearson"] = Field(
        "cosine", description="distance between projected student map and teacher map"
    )
    distill_weight: float = Field(5.0, gt=0, description="initial λ, what the semantic loss is multiplied with")
    rho: float | Literal["auto", "fixed"] = Field(
        11.0, description="ρ, the wanted gradient share in percent; 'auto' calibrates it, 'fixed' keeps λ as it is"
    )
    delta: float = Field(1.0, ge=0, description="δ, half the width of the window around ρ, in percent")
    distill_default_weight: float = Field(20.0, gt=0, description="λ of the last stage, and where no gradient is seen")

    # Data
    input_size: InputSize = Field((640, 640), description="height,width of the images; one number for a square")
    batch_size: PositiveInt | Literal["auto"] = Field(
        32, description="images per optimizer step, over all processes; 'auto' finds the most that fit the device"
    )
    accumulate: int = Field(1, ge=1, description="parts that the images of a step are taken in, one after the other")
    workers: int = Field(4, ge=0, description="data-loading processes per training process")
    augment: bool = Field(True, description="whether images are augmented at all, beyond flipping")
    mosaic: float = Field(0.5, ge=0, le=1, description="probability of a mosaic of four images, while dense")
    mixup: float = Field(0.5, ge=0, le=1, description="probability that a batch is mixed with itself, while dense")
    multi_scale: PositiveInt | None = Field(
        20, description="how often the input size occurs among the sizes drawn, 3/4 to 5/4 of it; 'null': one size"
    )

    # Schedule
    epochs: int = Field(132, ge=1, description="passes over the training images; all stages follow from it")
    augmented_from: int | None = Field(None, ge=0, description="epoch that augmentation begins with; None: derived")
    dense_until: int | None = Field(None, ge=0, description="epoch that mosaic and mixup end before; None: derived")
    flat_until: int | None = Field(None, ge=0, description="epoch that the cosine starts with; None: derived")
    plain_epochs: int | None = Field(None, ge=0, description="last epochs without augmentation; None: derived")
    learning_rate: float = Field(4e-4, gt=0, description="AdamW's rate for everything but the backbone")
    backbone_learning_rate: float = Field(2e-4, gt=0, description="AdamW's rate for the backbone")
    final_learning_rate: float = Field(0.5, gt=0, le=1, description="factor on the rates that the cosine ends with")
    warmup: Literal["quadratic", "linear"] = Field("quadratic", description="how the rates rise")
    warmup_steps: int | None = Field(None, ge=0, description="for how long; None: 2000, at most 5 % of the run")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's decoupled weight decay")
    undecayed: Literal["norms", "norms_and_biases", "nothing"] = Field(
        "norms", description="parameters of encoder and decoder without weight decay"
    )
    backbone_norms: Literal["as_norms", "as_backbone", "undecayed"] = Field(
        "as_norms", description="the backbone's norms: full rate without decay, as the backbone's other weights, or "
        "at its rate without decay",
    )  # fmt: skip
    clip_norm: float = Field(0.1, gt=0, description="largest L2 norm of the gradient")
    ema_decay: float = Field(0.9999, gt=0, lt=1, description="decay of the averaged weights")
    ema_warmup_steps: int = Field(1000, ge=1, description="time constant of the average's warm-up, in steps")
    reload_best: bool = Field(True, description="begin the last stage, and its epochs after a failure, with the best")
    ema_restart_decay: float | None = Field(
        0.9999,
        gt=0,
        lt=1,
        description="decay of the average in the last stage, lowered at every return; null: as before",
    )

    # The run itself
    seed: int = Field(0, ge=0, description="seed of weights, data order, augmentation and denoising")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="'auto' takes an accelerator if there is one")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass; losses stay in float32"
    )
    sync_batch_norm: bool = Field(True, description="batch norms see the images of all processes")
    compile: bool = Field(False, description="compile the network with torch.compile")
    shard: bool = Field(False, description="shard weights, gradients and optimizer over the processes (FSDP2)")
    evaluate_every: int = Field(1, ge=1, description="epochs between evaluations; the last epoch is always evaluated")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints that are kept, besides the best")
    save_every: PositiveInt | None = Field(None, description="steps between checkpoints inside an epoch; None: none")
    log_every: int = Field(20, ge=1, description="steps between two reads of the losses from the device")
    max_bad_steps: int = Field(10, ge=1, description="steps in a row without a finite gradient that end the run")
    check_data: bool = Field(True, description="look at every image and box before a new run")
    dry_run: bool = Field(True, description="try the largest batch before the first epoch")
    tracker: Literal["wandb"] | None = Field(None, description="service that gets the curves besides TensorBoard")

    @field_validator("rho", mode="before")
    @classmethod
    def _no_flag(cls, value: Any) -> Any:
        if isinstance(value, bool):  # YAML reads `off` as false, which would pass as 0
            raise ValueError("must be a number, 'auto' or 'fixed'")
        return value

    @field_validator("model")
    @classmethod
    def _exists(cls, name: str) -> str:
        if name not in CATALOG:
            raise ValueError(str(unknown_name("model", name, CATALOG, "detectors.list_models() lists all.")))
        return name

    @field_validator("teacher")
    @classmethod
    def _none_is_no_teacher(cls, value: str | None) -> str | None:
        return None if value is None or value.lower() == "none" else value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if len(self.teachers) > 1 and self.teacher_weights is not None:
            raise ValueError("teacher_weights belong to one teacher, and there are several")
        if self.teacher is None and self.teacher_weights is not None:
            raise ValueError("teacher_weights needs a teacher: name the architecture that the file belongs to")
        if self.teacher_control is not None and self.teacher is None:
            raise ValueError("teacher_control needs a teacher: name the one that it stands beside")
        if self.teacher_control == "random" and self.teacher_weights is not None:
            raise ValueError("teacher_control 'random' draws the teacher's weights: leave out teacher_weights")
        if self.weights is not None and self.backbone_weights is not None:
            raise ValueError("weights are those of the whole detector, the backbone's too: leave out backbone_weights")
        if self.weights is not None and self.init is not None:
            raise ValueError("weights are those of the whole detector, init's those of a part: leave out one of them")
        if isinstance(self.rho, float) and not self.delta < self.rho < 100 - self.delta:
            raise ValueError(f"the window ρ ± δ must lie between 0 and 100 percent, got {self.rho} ± {self.delta}")
        stages = self.stages
        for name in ("augmented_from", "dense_until", "flat_until"):
            if getattr(stages, name) > stages.plain_from:
                raise ValueError(
                    f"{name} is epoch {getattr(stages, name)}, but the last stage begins with epoch "
                    f"{stages.plain_from} of {self.epochs}; lower {name} or plain_epochs"
                )
        if self.plain_epochs is not None and self.plain_epochs > self.epochs:
            raise ValueError(f"plain_epochs is {self.plain_epochs}, but there are {self.epochs} epochs")
        if self.batch_size != "auto" and self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} cannot be taken in {self.accumulate} equal parts")
        return self

    @property
    def teachers(self) -> dict[str, float]:
        """The teachers by name, with their shares of the semantic loss."""
        shares: dict[str, float] = {}
        for part in () if self.teacher is None else self.teacher.split(","):
            name, equals, share = part.partition("=")
            if name.strip() in shares:
                raise ValueError(f"teacher {name.strip()!r} is given twice")
            if not name.strip():
                raise ValueError(f"teacher {self.teacher!r}: a name is empty; expected NAME=SHARE,NAME=SHARE or 'none'")
            try:
                shares[name.strip()] = float(share) if equals else 1.0
            except ValueError:
                raise ValueError(f"the share of teacher {name.strip()!r} is {share!r}; expected a number") from None
            if not 0 < shares[name.strip()] < math.inf:
                raise ValueError(f"the share of teacher {name.strip()!r} is {share}; expected a finite number above 0")
        return shares

    @property
    def stages(self) -> Stages:
        """The epochs at which the run changes what it does: the published ones in proportion, or what is given."""
        published = PUBLISHED[self.model]
        derived = published.stages.scaled(published.epochs, self.epochs)
        plain_from = derived.plain_from if self.plain_epochs is None else self.epochs - self.plain_epochs

        def boundary(given: int | None, derived: int) -> int:
            return min(derived, plain_from) if given is None else given

        return Stages(
            augmented_from=boundary(self.augmented_from, derived.augmented_from),
            dense_until=boundary(self.dense_until, derived.dense_until),
            flat_until=boundary(self.flat_until, derived.flat_until),
            plain_from=plain_from,
        )

    def augmentation(self, epoch: int) -> Augmentation:
        """Return what happens to the images of an epoch."""
        stages = self.stages
        if not self.augment or epoch >= stages.plain_from:
            return Augmentation()
        if epoch < stages.augmented_from:
            return Augmentation(multi_scale=self.multi_scale)
        dense = epoch < stages.dense_until
        return Augmentation(
            strong=True,
            mosaic=self.mosaic if dense else 0.0,
            mixup=self.mixup if dense else 0.0,
            multi_scale=self.multi_scale,
        )

    def warmup_length(self, total_steps: int) -> int:
        """Return the steps of the learning rate's warm-up in a run of `total_steps`."""
        return self.warmup_steps if self.warmup_steps is not None else min(2000, total_steps // 20)


def recipe_for(model: str = "rtdetrv4_s", **overrides: Any) -> Recipe:
    """Return the published recipe of a model with some fields replaced.

    Args:
        model: a name of `detectors.list_models()`.
        overrides: any field of `Recipe`.

    Raises:
        UnknownNameError: the model or a field does not exist.
        InputError: values do not fit their fields; all of these are named.
    """
    detector_spec(model)  # raises for a name that there is not
    for key in overrides:
        if key not in Recipe.model_fields:
            raise unknown_name("recipe field", key, Recipe.model_fields)
    published = PUBLISHED[model]
    try:
        return Recipe.model_validate({"epochs": published.epochs, **published.settings, "model": model, **overrides})
    except ValidationError as error:
        raise InputError(sentences(error)) from None


def sentences(error: Any) -> str:
    """Return one line per rejected field of a pydantic error: field, what was given, what was expected."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for item in error.errors():
        # What follows the field's name are the alternatives that it may be.
        field = str(item["loc"][0]) if item["loc"] else "recipe"
        given = "" if isinstance(item["input"], Recipe) or not item["loc"] else f" (given: {item['input']!r})"
        wanted.setdefault((field, given), []).append(item["msg"].removeprefix("Value error, "))
    return "; ".join(f"{field}: {' or '.join(messages)}{given}" for (field, given), messages in wanted.items())
