"""From a name to a detector, and to the criterion that it is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from detectors.backbones import build_backbone
from detectors.catalog import DetectorSpec, detector_spec
from detectors.decoders.dfine import DFINEDecoder
from detectors.decoders.rtdetr import RTDETRDecoder
from detectors.detector import Detector
from detectors.hybrid_encoder import HybridEncoder
from detectors.losses.criterion import Criterion
from vfmdistill.errors import InputError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU}


def build(
    name: str,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    pretrained_backbone: bool | str | Path = False,
    **overrides: Any,
) -> Detector:
    """Build a detector by name.

    >>> model = build("rtdetrv4_s", num_classes=80)
    >>> small = build("rtdetrv4_n", class_names=["cat", "dog"], num_queries=100)

    Args:
        name: one of `detectors.list_models()`.
        num_classes: number of classes; may be left out where `class_names` tells it.
        class_names: their names, in the order of the logits.
        pretrained_backbone: True for timm's ImageNet weights of the backbone, or a file that holds them; False for
            random ones.
        overrides: any field of `DetectorSpec` but name and family.

    Raises:
        UnknownNameError: no such model or option; the message names the nearest.
        InputError: the number of classes is missing or contradicts the names, or an option's value does not fit.
        WeightsError: the backbone's weights cannot be had.
    """
    spec = detector_spec(name).replace(**overrides)
    num_classes = _count_classes(num_classes, class_names)
    backbone = build_backbone(
        spec.backbone,
        spec.backbone_stages,
        pretrained=pretrained_backbone,
        freeze_norms=spec.backbone_freeze_norms,
        freeze_stem=spec.backbone_freeze_stem,
    )
    encoder = HybridEncoder(
        backbone.feature_info.channels(),  # type: ignore[union-attr, operator]
        dim=spec.encoder_dim,
        num_heads=spec.encoder_heads,
        feedforward=spec.encoder_feedforward,
        num_layers=spec.encoder_layers,
        fusion=spec.encoder_fusion,
        expansion=spec.encoder_expansion,
        depth=spec.encoder_depth,
    )
    decoder = _build_decoder(spec, num_classes)
    return Detector(backbone, encoder, decoder, spec=spec, class_names=class_names)


def build_criterion(name: str | DetectorSpec, num_classes: int, **overrides: Any) -> Criterion:
    """Build the criterion that a detector is trained with.

    Args:
        name: one of `detectors.list_models()`, or a spec, for example that of a built detector.
        num_classes: number of classes.
        overrides: any field of `DetectorSpec` but name and family.

    Raises:
        UnknownNameError: no such model or option; the message names the nearest.
        InputError: an option's value does not fit.
    """
    spec = (detector_spec(name) if isinstance(name, str) else name).replace(**overrides)
    return Criterion(
        num_classes,
        classification=spec.classification,
        gamma=spec.gamma,
        alpha=spec.alpha,
        weights={
            spec.classification: spec.weight_classification,
            "bbox": spec.weight_bbox,
            "giou": spec.weight_giou,
            "fgl": spec.weight_fgl,
            "ddf": spec.weight_ddf,
        },
        reg_max=spec.reg_max,
        union_matching=spec.union_matching,
    )


def _build_decoder(spec: DetectorSpec, num_classes: int) -> DFINEDecoder | RTDETRDecoder:
    in_channels = [spec.encoder_dim] * len(spec.backbone_stages)
    common: dict[str, Any] = {
        "dim": spec.decoder_dim,
        "num_heads": spec.decoder_heads,
        "feedforward": spec.decoder_feedforward,
        "num_layers": spec.decoder_layers,
        "eval_index": spec.decoder_eval_index,
        "num_points": spec.decoder_points,
        "num_queries": spec.num_queries,
        "num_denoising": spec.num_denoising,
        "label_noise": spec.label_noise,
        "box_noise": spec.box_noise,
        "flip": spec.denoising_flip,
        "position_widths": spec.decoder_position_widths,
        "activation": ACTIVATIONS[spec.activation],
    }
    if spec.decoder == "rtdetr":
        return RTDETRDecoder(in_channels, num_classes, **common)
    return DFINEDecoder(in_channels, num_classes, reg_max=spec.reg_max, reg_scale=spec.reg_scale, **common)


def _count_classes(num_classes: int | None, class_names: Sequence[str] | None) -> int:
    if class_names is not None:
        if isinstance(class_names, str) or not all(isinstance(name, str) and name for name in class_names):
            raise InputError(f"class_names must be a list of names, got {class_names!r}.")
        if len(set(class_names)) != len(class_names):
            raise InputError(f"class_names holds the same name twice: {list(class_names)}.")
        if num_classes is not None and num_classes != len(class_names):
            raise InputError(
                f"num_classes is {num_classes}, but class_names holds {len(class_names)} names; leave one out."
            )
        num_classes = len(class_names)
    if num_classes is None:
        raise InputError("the number of classes is missing: give num_classes=80, or class_names=[...].")
    if not isinstance(num_classes, int):
        raise InputError(f"num_classes must be a whole number, got {num_classes!r}.")
    if num_classes < 1:
        raise InputError(f"a detector needs at least one class, got {num_classes}.")
    return num_classes
