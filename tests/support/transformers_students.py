"""Tiny vision models of transformers, of random weights: what each is made of, and where it is to be tapped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers")

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
RESNET: dict[str, Any] = {
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
DETR: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_queries": 6,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}
AIFI = {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [8, 16, 16],
    "encoder_ffn_dim": 16,
    "encoder_attention_heads": 2,
    "d_model": 16,
    "decoder_in_channels": [16, 16, 16],
    "decoder_layers": 2,
    "decoder_ffn_dim": 16,
    "decoder_attention_heads": 2,
    "num_queries": 6,
}
HEADS = {
    "decoder_layers": 2,
    "decoder_ffn_dim": 16,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "num_queries": 4,
    "group_detr": 1,
}
VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": (64, 96),
    "patch_size": 16,
}
SEGFORMER = {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 2], "num_attention_heads": [1, 1, 1, 1]}
SWIN = {"image_size": (64, 96), "embed_dim": 8, "depths": [1, 1, 1, 2], "num_heads": [1, 1, 2, 2], "window_size": 2}
CONVNEXT: dict[str, Any] = {"hidden_sizes": [8, 8, 8, 16], "depths": [1, 1, 1, 1]}
REGNET = CONVNEXT | {"embedding_size": 8, "groups_width": 8}
STAGES = ["stage1", "stage2", "stage3", "stage4"]

# Head, kind of model, its settings, the class of the tap, the map
STUDENTS: dict[str, tuple[str, str, dict[str, Any], str, tuple[int, ...]]] = {
    "rt-detr": ("ObjectDetection", "rt_detr", AIFI, "RTDetr(AIFILayer|Encoder)", (16, 2, 3)),
    "rt-detr v2": ("ObjectDetection", "rt_detr_v2", AIFI, "RTDetrV2(AIFILayer|Encoder)", (16, 2, 3)),
    "d-fine": ("ObjectDetection", "d_fine", AIFI, "DFine(AIFILayer|Encoder)", (16, 2, 3)),
    "detr": ("ObjectDetection", "detr", DETR, "DetrEncoderLayer", (16, 2, 3)),
    "conditional detr": ("ObjectDetection", "conditional_detr", DETR, "ConditionalDetrEncoderLayer", (16, 2, 3)),
    "deformable detr": (
        "ObjectDetection", "deformable_detr", DETR | {"d_model": 32, "decoder_layers": 2},
        "DeformableDetrEncoderLayer", (32, 2, 3),
    ),
    "segformer": ("SemanticSegmentation", "segformer", SEGFORMER, "Segformer(Stage|Layer)", (16, 2, 3)),
    "vit": ("ImageClassification", "vit", VIT, "ViTLayer", (16, 4, 6)),
    "deit": ("", "deit", VIT, "DeiTLayer", (16, 4, 6)),
    "dinov2": ("ImageClassification", "dinov2", VIT | {"image_size": 64}, "Dinov2Layer", (16, 4, 6)),
    "dinov2 with registers": (
        "ImageClassification", "dinov2_with_registers", VIT | {"image_size": 64},
        "Dinov2WithRegistersLayer", (16, 4, 6),
    ),
    "swin": ("ImageClassification", "swin", SWIN, "SwinStage", (64, 2, 3)),
    "swin v2": ("ImageClassification", "swinv2", SWIN, "Swinv2Stage", (64, 2, 3)),
    "convnext": ("ImageClassification", "convnext", CONVNEXT, "ConvNextStage", (16, 2, 3)),
    "resnet": ("ImageClassification", "resnet", RESNET, "ResNetStage", (16, 2, 3)),
    "dab-detr": (
        "ObjectDetection", "dab-detr", DETR | {"hidden_size": 16}, "DabDetrEncoderLayer", (16, 2, 3),
    ),
    "table transformer": ("ObjectDetection", "table-transformer", DETR, "TableTransformerEncoderLayer", (16, 2, 3)),
    "deimv2": ("ObjectDetection", "deimv2", {"num_queries": 4}, "Deimv2AIFILayer", (256, 2, 3)),
    "rf-detr": ("ObjectDetection", "rf_detr", HEADS | {"d_model": 16}, "RfDetrScaleProjector", (16, 4, 6)),
    "lw-detr": (
        "ObjectDetection", "lw_detr", HEADS | {"d_model": 16, "projector_scale_factors": [2.0, 0.5]},
        "LwDetrScaleProjector", (16, 2, 3),
    ),
    "upernet": ("SemanticSegmentation", "upernet", {"hidden_size": 16}, "ConvNextStage", (16, 2, 3)),
    "beit": ("ImageClassification", "beit", VIT, "BeitLayer", (16, 4, 6)),
    "dinov3": ("", "dinov3_vit", VIT | {"num_register_tokens": 4}, "DINOv3ViTLayer", (16, 4, 6)),
    "dinov3 convnext": ("", "dinov3_convnext", CONVNEXT, "DINOv3ConvNextStage", (16, 2, 3)),
    "convnext v2": ("ImageClassification", "convnextv2", CONVNEXT, "ConvNextV2Stage", (16, 2, 3)),
    "regnet": ("ImageClassification", "regnet", REGNET, "RegNetStage", (16, 2, 3)),
}  # fmt: skip
_ON_RESNET = ("detr", "conditional_detr", "dab-detr", "table-transformer")


def tiny_student(head: str, kind: str, settings: dict[str, Any]) -> nn.Module:
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    backbone = _backbone(kind)
    if backbone is not None:
        settings = {**settings, "backbone_config": backbone}
    if kind == "dab-detr":
        settings = {name: value for name, value in settings.items() if name != "d_model"}
    if kind == "upernet":
        settings = {**settings, "use_auxiliary_head": False}
    model = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel")
    student: nn.Module = model.from_config(transformers.CONFIG_MAPPING[kind](**settings))
    return student


def _backbone(kind: str) -> Any:
    """Return the configuration of a detector's backbone, None where it has none."""
    if kind in ("rt_detr", "rt_detr_v2"):
        return transformers.RTDetrResNetConfig(**RESNET, out_indices=[2, 3, 4])
    if kind == "d_fine":
        return transformers.HGNetV2Config(
            stem_channels=[3, 8, 8],
            stage_in_channels=[8, 8, 8, 16],
            stage_mid_channels=[4, 4, 4, 4],
            stage_out_channels=[8, 8, 16, 16],
            stage_num_blocks=[1, 1, 1, 1],
            stage_numb_of_layers=[1, 1, 1, 1],
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            out_indices=[2, 3, 4],
        )
    if kind == "rf_detr":
        windows = {"image_size": 64, "num_hidden_layers": 4, "num_windows": 1, "out_indices": [2, 4]}
        return transformers.CONFIG_MAPPING["rf_detr_dinov2"](**VIT | windows)
    if kind == "lw_detr":
        windows = {
            "image_size": 64,
            "num_hidden_layers": 4,
            "num_windows": 4,
            "window_block_indices": [1, 3],
            "out_indices": [2, 4],
        }
        return transformers.CONFIG_MAPPING["lw_detr_vit"](**VIT | windows)
    if kind == "upernet":
        return transformers.ConvNextConfig(**CONVNEXT, out_features=STAGES)
    if kind == "deformable_detr":
        return transformers.ResNetConfig(**RESNET, out_features=STAGES[1:])
    return transformers.ResNetConfig(**RESNET, out_features=STAGES[3:]) if kind in _ON_RESNET else None
