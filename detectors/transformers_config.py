"""TransformersConfig: what the config.json of a transformers checkpoint says about its detector."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from detectors.catalog import DetectorSpec
from detectors.detector_config import CONFIG, read_json
from vfmdistill.errors import WeightsError

MODEL_TYPES = ("d_fine", "rt_detr", "rt_detr_v2")

# Settings that change what is computed and that the detectors here do not have; the values are what they compute.
_FIXED: dict[str, Any] = {
    "activation_function": "silu",
    "encoder_activation_function": "gelu",
    "normalize_before": False,
    "positional_encoding_temperature": 10000,
    "eval_size": None,  # transformers leaves the positions out where it is set
    "layer_norm_eps": 1e-5,
    "batch_norm_eps": 1e-5,
    "learn_initial_query": False,
    "decoder_method": "default",
    "decoder_offset_scale": 0.5,
    "layer_scale": 1.0,
    "top_prob_values": 4,
}
_FIXED_BACKBONE: dict[str, Any] = {
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
    "stem_strides": (2, 1, 1, 2, 1),
    "stage_downsample_strides": (2, 2, 2, 2),
}


class BackboneConfig(BaseModel):
    """The part about the backbone; defaults are those of transformers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: str
    out_features: tuple[str, ...] | None = None
    out_indices: tuple[int, ...] | None = None
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    stem_strides: tuple[int, ...] = (2, 1, 1, 2, 1)
    stage_downsample_strides: tuple[int, ...] = (2, 2, 2, 2)

    @property
    def stages(self) -> tuple[int, ...]:
        """The stages whose maps are used, counted from zero; transformers counts the stem."""
        if self.out_indices is None:
            return tuple(int(stage) - 1 for stage in re.findall(r"\bstage(\d+)\b", " ".join(self.out_features or ())))
        return tuple(index - 1 for index in self.out_indices)


class TransformersConfig(BaseModel):
    """What decides the structure of a detector and what it computes; defaults are those of transformers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    model_type: Literal["d_fine", "rt_detr", "rt_detr_v2"]
    id2label: dict[int, str] | None = None
    backbone_config: BackboneConfig | None = None

    encoder_hidden_dim: int = 256
    encoder_attention_heads: int = 8
    encoder_ffn_dim: int = 1024
    encoder_layers: int = 1
    encode_proj_layers: tuple[int, ...] = (2,)
    encoder_activation_function: str = "gelu"
    activation_function: str = "silu"
    normalize_before: bool = False
    positional_encoding_temperature: float = 10000
    eval_size: Any = None
    hidden_expansion: float = 1.0
    depth_mult: float = 1.0
    layer_norm_eps: float = 1e-5
    batch_norm_eps: float = 1e-5

    d_model: int = 256
    decoder_attention_heads: int = 8
    decoder_ffn_dim: int = 1024
    decoder_layers: int = 6
    decoder_n_points: int | tuple[int, ...] = 4
    decoder_activation_function: str = "relu"
    decoder_method: str = "default"
    decoder_offset_scale: float = 0.5
    num_feature_levels: int = 3
    learn_initial_query: bool = False
    eval_idx: int = -1
    layer_scale: float = 1.0
    max_num_bins: int = 32
    reg_scale: float = 4.0
    top_prob_values: int = 4

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of the logits; None if unknown: LABEL_0 and so on are no names."""
        names = dict(self.id2label or {})
        if sorted(names) != list(range(len(names))) or all(re.fullmatch(r"LABEL_\d+", n) for n in names.values()):
            return None
        return [names[index] for index in range(len(names))]

    def options(self) -> dict[str, Any]:
        """Return the fields of a `DetectorSpec` that decide the same."""
        dfine = self.model_type == "d_fine"
        points = self.decoder_n_points
        options: dict[str, Any] = {
            "decoder": "dfine" if dfine else "rtdetr",
            "encoder_dim": self.encoder_hidden_dim,
            "encoder_heads": self.encoder_attention_heads,
            "encoder_feedforward": self.encoder_ffn_dim,
            "encoder_layers": self.encoder_layers,
            "encoder_fusion": "elan" if dfine else "csp",
            "encoder_expansion": self.hidden_expansion,
            "encoder_depth": self.depth_mult if dfine else 1.0,
            "decoder_dim": self.d_model,
            "decoder_heads": self.decoder_attention_heads,
            "decoder_feedforward": self.decoder_ffn_dim,
            "decoder_layers": self.decoder_layers,
            "decoder_eval_index": self.eval_idx if dfine else -1,
            "decoder_points": (points,) * self.num_feature_levels if isinstance(points, int) else points,
            "decoder_position_widths": (2,),
            "activation": self.decoder_activation_function,
        }
        if self.backbone_config is not None:
            options["backbone_stages"] = self.backbone_config.stages
        if dfine:
            options |= {"reg_max": self.max_num_bins, "reg_scale": self.reg_scale}
        return options

    def check(self, spec: DetectorSpec, directory: Path) -> None:
        """Compare with the settings that a detector was built with.

        Raises:
            WeightsError: they differ, or the checkpoint needs something that the detectors here do not have; all of it
                is listed.
        """
        foreign = [
            f"{field}={getattr(self, field)!r} (only {value!r})"
            for field, value in _FIXED.items()
            if getattr(self, field) != value
        ]
        if self.encode_proj_layers != (self.num_feature_levels - 1,):
            foreign.append(f"encode_proj_layers={self.encode_proj_layers} (only the last map)")
        expected = "hgnet_v2" if self.model_type == "d_fine" else "rt_detr_resnet"
        backbone = self.backbone_config
        if backbone is None or backbone.model_type != expected:
            given = None if backbone is None else backbone.model_type
            foreign.append(f"a backbone of type {given!r} (only {expected!r})")
        else:
            foreign += [
                f"backbone {field}={getattr(backbone, field)!r} (only {value!r})"
                for field, value in _FIXED_BACKBONE.items()
                if getattr(backbone, field) != value
            ]
        if foreign:
            raise WeightsError(f"the model in {directory} computes something else than {spec.name!r}: {foreign}.")
        differing = {
            field: value
            for field, value in self.options().items()
            if _comparable(field, value, spec) != _comparable(field, getattr(spec, field), spec)
        }
        if differing:
            ours = ", ".join(f"{field}={getattr(spec, field)!r}" for field in differing)
            theirs = ", ".join(f"{field}={value!r}" for field, value in differing.items())
            raise WeightsError(
                f"the {self.model_type} in {directory} is not built like {spec.name!r} with {ours}: build the detector "
                f"with {theirs}, or another one."
            )


def read_transformers_config(directory: Path) -> TransformersConfig:
    """Read the config.json of a folder that transformers wrote.

    Raises:
        WeightsError: it is missing, damaged, or that of another kind of model.
    """
    content = read_json(directory / CONFIG)
    if content.get("model_type") not in MODEL_TYPES:
        raise WeightsError(
            f"{directory / CONFIG} has the model_type {content.get('model_type')!r}; of transformers' models "
            f"{', '.join(MODEL_TYPES)} are read."
        )
    try:
        return TransformersConfig.model_validate(content)
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise WeightsError(f"{directory / CONFIG} is damaged: {reasons}") from None


def _comparable(field: str, value: Any, spec: DetectorSpec) -> Any:
    """Return what a setting comes down to."""
    if field == "encoder_depth":
        return round(3 * value)
    if field == "decoder_eval_index":
        return value % spec.decoder_layers
    return value
