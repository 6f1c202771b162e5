"""The table of detectors: every name and the settings behind it.

Settings are those of the authors: RT-DETR (arXiv 2304.08069), RT-DETRv2 (arXiv 2407.17140), D-FINE (arXiv 2410.13842),
DEIM (arXiv 2412.04234), RT-DETRv4 (arXiv 2510.25257).
"""

from __future__ import annotations

import fnmatch
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from detectors.input_size import InputSize
from vfmdistill.errors import InputError, unknown_name


class DetectorSpec(BaseModel):
    """Everything that distinguishes one detector from another, and how it is trained to be told right from wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: Literal["rtdetrv4", "deim", "dfine", "rtdetr", "rtdetrv2", "deim_rtdetrv2"]
    input_size: InputSize = Field((640, 640), description="height and width of the images, multiples of 32")

    backbone: str = Field(description="timm model and, behind the dot, the name of its ImageNet weights")
    backbone_stages: tuple[int, ...] = Field((1, 2, 3), description="stages whose maps are used, fine to coarse")
    backbone_freeze_norms: bool = Field(False, description="batch norms of the backbone are constants")
    backbone_freeze_stem: bool = Field(False, description="the backbone's stem is not trained")

    encoder_dim: int = Field(256, gt=0, multiple_of=4, description="channels of the encoder's maps")
    encoder_heads: int = Field(8, gt=0)
    encoder_feedforward: int = Field(1024, gt=0, description="hidden width of AIFI")
    encoder_layers: int = Field(1, ge=1, description="transformer layers of AIFI")
    encoder_fusion: Literal["elan", "csp"] = Field("elan", description="kind of the cross-scale fusion blocks")
    encoder_expansion: float = Field(1.0, gt=0, description="relative width of the fusion blocks")
    encoder_depth: float = Field(1.0, gt=0, description="relative depth of the fusion blocks")

    decoder: Literal["dfine", "rtdetr"] = Field("dfine", description="edge distributions, or plain boxes")
    decoder_dim: int = Field(256, gt=0, description="width of the queries")
    decoder_heads: int = Field(8, gt=0)
    decoder_feedforward: int = Field(1024, gt=0)
    decoder_layers: int = Field(6, ge=1)
    decoder_eval_index: int = Field(-1, description="the layer that answers outside training")
    decoder_points: tuple[PositiveInt, ...] = Field((3, 6, 3), description="sampling points on each map")
    decoder_position_widths: tuple[PositiveInt, ...] = Field(
        (2,), description="hidden widths of the perceptron that embeds boxes, in units of decoder_dim"
    )
    activation: Literal["relu", "silu"] = Field("silu", description="of the decoder and its heads")
    num_queries: int = Field(300, ge=1)
    num_denoising: int = Field(100, ge=0, description="denoising queries; 0 for none")
    label_noise: float = Field(0.5, ge=0, le=1)
    box_noise: float = Field(1.0, ge=0)
    denoising_flip: bool = Field(True, description="noisy boxes turned inside out are turned back")
    reg_max: int = Field(32, ge=4, multiple_of=2, description="number of the last bin of the edge distributions")
    reg_scale: float = Field(4.0, gt=0, description="curvature of the bins' offsets")

    classification: Literal["mal", "vfl"] = Field("mal", description="classification loss")
    gamma: float = Field(1.5, ge=0, description="focusing exponent of the classification loss")
    alpha: float | None = Field(None, ge=0, description="weight of negatives in vfl; mal has none")
    weight_classification: float = Field(1.0, ge=0)
    weight_bbox: float = Field(5.0, ge=0)
    weight_giou: float = Field(2.0, ge=0)
    weight_fgl: float = Field(0.15, ge=0)
    weight_ddf: float = Field(1.5, ge=0)
    union_matching: bool = Field(True, description="box and edge losses take the union of all layers' matches")

    @field_validator("backbone_stages")
    @classmethod
    def _ascend(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        if not stages or stages[0] < 0 or list(stages) != list(range(stages[0], stages[0] + len(stages))):
            raise ValueError(f"stages must follow each other, each map half as large as the one before; got {stages}")
        return stages

    @model_validator(mode="after")
    def _fit_together(self) -> DetectorSpec:
        if len(self.decoder_points) != len(self.backbone_stages):
            raise ValueError(
                f"decoder_points {self.decoder_points} and backbone_stages {self.backbone_stages} differ in length"
            )
        if not -self.decoder_layers <= self.decoder_eval_index < self.decoder_layers:
            raise ValueError(f"decoder_eval_index {self.decoder_eval_index}: there are {self.decoder_layers} layers")
        for part in ("encoder", "decoder"):
            dim, heads = getattr(self, f"{part}_dim"), getattr(self, f"{part}_heads")
            if dim % heads:
                raise ValueError(f"{part}_dim {dim} is not divisible by {part}_heads {heads}")
        return self

    def changes(self) -> dict[str, Any]:
        """Return the fields that differ from those of the row with this name, as JSON has them."""
        row = detector_spec(self.name).model_dump(mode="json")
        return {field: value for field, value in self.model_dump(mode="json").items() if value != row[field]}

    def replace(self, **changes: Any) -> DetectorSpec:
        """Return this spec with some fields changed.

        Raises:
            UnknownNameError: there is no such field.
            InputError: a value does not fit.
        """
        fields = set(type(self).model_fields) - {"name", "family"}
        for field in changes:
            if field not in fields:
                raise unknown_name("model option", field, fields, f"All of them: {', '.join(sorted(fields))}.")
        try:
            return type(self).model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            reasons = "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {item['msg']}".removeprefix(": ").replace("Value error, ", "")
                for item in error.errors()
            )
            raise InputError(f"{self.name} cannot be built with {changes}: {reasons}") from None


_N: dict[str, Any] = {
    "backbone": "hgnetv2_b0.ssld_stage1_in22k_in1k", "backbone_stages": (2, 3),
    "encoder_dim": 128, "encoder_feedforward": 512, "encoder_expansion": 0.34, "encoder_depth": 0.5,
    "decoder_dim": 128, "decoder_feedforward": 512, "decoder_layers": 3, "decoder_points": (6, 6),
}  # fmt: skip
_S: dict[str, Any] = {
    "backbone": "hgnetv2_b0.ssld_stage1_in22k_in1k",
    "encoder_expansion": 0.5, "encoder_depth": 0.34, "decoder_layers": 3,
}  # fmt: skip
_M: dict[str, Any] = {
    "backbone": "hgnetv2_b2.ssld_stage1_in22k_in1k", "encoder_depth": 0.67, "decoder_layers": 4,
}  # fmt: skip
_L: dict[str, Any] = {"backbone": "hgnetv2_b4.ssld_stage1_in22k_in1k"}
_X: dict[str, Any] = {
    "backbone": "hgnetv2_b5.ssld_stage1_in22k_in1k",
    "encoder_dim": 384, "encoder_feedforward": 2048, "reg_scale": 8.0,
}  # fmt: skip

_R18: dict[str, Any] = {"backbone": "resnet18d.ra4_e3600_r224_in1k", "encoder_expansion": 0.5, "decoder_layers": 3}
_R34: dict[str, Any] = {"backbone": "resnet34d.ra2_in1k", "encoder_expansion": 0.5, "decoder_layers": 4}
_R50: dict[str, Any] = {"backbone": "resnet50d.ra2_in1k"}
_R50_M: dict[str, Any] = {**_R50, "encoder_expansion": 0.5, "decoder_eval_index": 2}
_R101: dict[str, Any] = {"backbone": "resnet101d.ra2_in1k", "encoder_dim": 384, "encoder_feedforward": 2048}

_RTDETRV4: dict[str, Any] = {"family": "rtdetrv4"}
_DEIM: dict[str, Any] = {"family": "deim"}
_DFINE: dict[str, Any] = {
    "family": "dfine", "activation": "relu",
    "classification": "vfl", "gamma": 2.0, "alpha": 0.75,
}  # fmt: skip
_FROZEN: dict[str, Any] = {"backbone_freeze_norms": True, "backbone_freeze_stem": True}
_BOXES: dict[str, Any] = {
    "encoder_fusion": "csp",
    "decoder": "rtdetr",
    "decoder_points": (4, 4, 4),
    "union_matching": False,
}
_RTDETRV2: dict[str, Any] = {
    "family": "rtdetrv2", "activation": "relu", **_BOXES,
    "classification": "vfl", "gamma": 2.0, "alpha": 0.75,
}  # fmt: skip
_RTDETR: dict[str, Any] = {**_RTDETRV2, "family": "rtdetr", "denoising_flip": False}
_DEIM_RTDETRV2: dict[str, Any] = {"family": "deim_rtdetrv2", "decoder_position_widths": (1, 1), **_BOXES}

CATALOG: dict[str, DetectorSpec] = {
    spec.name: spec
    for spec in (
        DetectorSpec(name="rtdetrv4_n", **_RTDETRV4, **_N),  # not in the paper: DEIM-N with a teacher
        DetectorSpec(name="rtdetrv4_s", **_RTDETRV4, **_S),
        DetectorSpec(name="rtdetrv4_m", **_RTDETRV4, **_M),
        DetectorSpec(name="rtdetrv4_l", **_RTDETRV4, **_L),
        DetectorSpec(name="rtdetrv4_x", **_RTDETRV4, **_X),
        DetectorSpec(name="deim_n", **_DEIM, **_N),
        DetectorSpec(name="deim_s", **_DEIM, **_S),
        DetectorSpec(name="deim_m", **_DEIM, **_M),
        DetectorSpec(name="deim_l", **_DEIM, **_L),
        DetectorSpec(name="deim_x", **_DEIM, **_X),
        DetectorSpec(name="dfine_n", **_DFINE, **_N),
        DetectorSpec(name="dfine_s", **_DFINE, **_S),
        DetectorSpec(name="dfine_m", **_DFINE, **_M),
        DetectorSpec(name="dfine_l", **_DFINE, **_L, **_FROZEN),
        DetectorSpec(name="dfine_x", **_DFINE, **_X, **_FROZEN),
        DetectorSpec(name="rtdetrv2_r18", **_RTDETRV2, **_R18),
        DetectorSpec(name="rtdetrv2_r34", **_RTDETRV2, **_R34),
        DetectorSpec(name="rtdetrv2_r50_m", **_RTDETRV2, **_R50_M, **_FROZEN),
        DetectorSpec(name="rtdetrv2_r50", **_RTDETRV2, **_R50, **_FROZEN),
        DetectorSpec(name="rtdetrv2_r101", **_RTDETRV2, **_R101, **_FROZEN),
        DetectorSpec(name="rtdetr_r18", **_RTDETR, **_R18),
        DetectorSpec(name="rtdetr_r34", **_RTDETR, **_R34),
        DetectorSpec(name="rtdetr_r50_m", **_RTDETR, **_R50_M, **_FROZEN),
        DetectorSpec(name="rtdetr_r50", **_RTDETR, **_R50, **_FROZEN),
        DetectorSpec(name="rtdetr_r101", **_RTDETR, **_R101, **_FROZEN),
        DetectorSpec(name="deim_rtdetrv2_r18", **_DEIM_RTDETRV2, **_R18),
        DetectorSpec(name="deim_rtdetrv2_r34", **_DEIM_RTDETRV2, **_R34),
        DetectorSpec(name="deim_rtdetrv2_r50_m", **_DEIM_RTDETRV2, **_R50_M, decoder_layers=3),
        DetectorSpec(name="deim_rtdetrv2_r50", **_DEIM_RTDETRV2, **_R50),
        DetectorSpec(name="deim_rtdetrv2_r101", **_DEIM_RTDETRV2, **_R101),
    )
}


def list_models(filter: str = "*") -> list[str]:
    """Return the names that `detectors.build` knows, those that match a pattern such as "rtdetrv4_*"."""
    return [name for name in CATALOG if fnmatch.fnmatchcase(name, filter)]


def detector_spec(name: str) -> DetectorSpec:
    """Return the settings behind a name.

    Raises:
        UnknownNameError: there is no such detector; the message names the nearest.
    """
    if name not in CATALOG:
        raise unknown_name("model", name, CATALOG, "detectors.list_models() lists all.")
    return CATALOG[name]
