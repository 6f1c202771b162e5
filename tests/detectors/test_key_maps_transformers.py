from __future__ import annotations

import re

import pytest
import torch

import detectors
from detectors.key_maps_transformers import TRANSFORMERS_SPELLINGS, transformers_keys


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [  # read off files that transformers 5.23 saved
        ("backbone.stem.stem2a.conv.weight", "model.backbone.model.embedder.stem2a.convolution.weight"),
        ("backbone.stem.stem1.lab.scale", "model.backbone.model.embedder.stem1.lab.scale"),
        (
            "backbone.stages_2.blocks.0.layers.1.conv2.bn.running_var",
            "model.backbone.model.encoder.stages.2.blocks.0.layers.1.conv2.normalization.running_var",
        ),
        (
            "backbone.stages_3.downsample.conv.weight",
            "model.backbone.model.encoder.stages.3.downsample.convolution.weight",
        ),
        ("backbone.conv1.3.weight", "model.backbone.model.embedder.embedder.1.convolution.weight"),
        ("backbone.bn1.bias", "model.backbone.model.embedder.embedder.2.normalization.bias"),
        (
            "backbone.layer1.0.downsample.1.weight",
            "model.backbone.model.encoder.stages.0.layers.0.shortcut.convolution.weight",
        ),
        (
            "backbone.layer3.0.downsample.2.weight",
            "model.backbone.model.encoder.stages.2.layers.0.shortcut.1.normalization.weight",
        ),
        (
            "backbone.layer4.1.bn3.running_mean",
            "model.backbone.model.encoder.stages.3.layers.1.layer.2.normalization.running_mean",
        ),
        ("encoder.input_projections.2.conv.weight", "model.encoder_input_proj.2.0.weight"),
        ("encoder.input_projections.0.norm.running_mean", "model.encoder_input_proj.0.1.running_mean"),
        ("encoder.aifi.layers.0.norm1.bias", "model.encoder.encoder.0.layers.0.self_attn_layer_norm.bias"),
        (
            "encoder.aifi.layers.0.attention.out_proj.weight",
            "model.encoder.encoder.0.layers.0.self_attn.out_proj.weight",
        ),
        ("encoder.aifi.layers.0.feedforward.2.weight", "model.encoder.encoder.0.layers.0.fc2.weight"),
        ("encoder.laterals.1.norm.weight", "model.encoder.lateral_convs.1.norm.weight"),
        ("encoder.downsamples.1.conv.weight", "model.encoder.downsample_convs.1.conv.weight"),
        ("encoder.downsamples.0.1.conv.weight", "model.encoder.downsample_convs.0.conv2.conv.weight"),
        ("encoder.top_down.0.enter.conv.weight", "model.encoder.fpn_blocks.0.conv1.conv.weight"),
        ("encoder.top_down.0.join.norm.bias", "model.encoder.fpn_blocks.0.conv4.norm.bias"),
        (
            "encoder.bottom_up.1.second.0.blocks.1.conv1x1.conv.weight",
            "model.encoder.pan_blocks.1.csp_rep2.bottlenecks.1.conv2.conv.weight",
        ),
        ("encoder.bottom_up.1.first.1.conv.weight", "model.encoder.pan_blocks.1.conv2.conv.weight"),
        ("encoder.top_down.1.leave.conv.weight", "model.encoder.fpn_blocks.1.conv3.conv.weight"),
        ("encoder.top_down.1.main.norm.weight", "model.encoder.fpn_blocks.1.conv1.norm.weight"),
        ("decoder.input_projections.1.norm.weight", "model.decoder_input_proj.1.1.weight"),
        ("decoder.selection.projection.bias", "model.enc_output.0.bias"),
        ("decoder.selection.norm.weight", "model.enc_output.1.weight"),
        ("decoder.selection.score_head.bias", "model.enc_score_head.bias"),
        ("decoder.selection.box_head.layers.1.weight", "model.enc_bbox_head.layers.1.weight"),
        ("decoder.denoising_embedding.weight", "model.denoising_class_embed.weight"),
        ("decoder.position_head.layers.1.bias", "model.decoder.query_pos_head.layers.1.bias"),
        ("decoder.first_box_head.layers.2.bias", "model.decoder.pre_bbox_head.layers.2.bias"),
        ("decoder.stages.1.score_head.weight", "model.decoder.class_embed.1.weight"),
        ("decoder.stages.1.corner_head.layers.0.bias", "model.decoder.bbox_embed.1.layers.0.bias"),
        ("decoder.stages.1.box_head.layers.0.bias", "model.decoder.bbox_embed.1.layers.0.bias"),
        (
            "decoder.stages.0.quality.perceptron.layers.1.weight",
            "model.decoder.lqe_layers.0.reg_conf.layers.1.weight",
        ),
        ("decoder.stages.2.layer.norm1.weight", "model.decoder.layers.2.self_attn_layer_norm.weight"),
        ("decoder.stages.2.layer.norm2.weight", "model.decoder.layers.2.final_layer_norm.weight"),
        ("decoder.stages.2.layer.merge.weight", "model.decoder.layers.2.encoder_attn_layer_norm.weight"),
        ("decoder.stages.2.layer.merge.norm.weight", "model.decoder.layers.2.gateway.norm.weight"),
        ("decoder.stages.2.layer.merge.linear.bias", "model.decoder.layers.2.gateway.gate.bias"),
        ("decoder.stages.0.layer.sampling.offsets.bias", "model.decoder.layers.0.encoder_attn.sampling_offsets.bias"),
        (
            "decoder.stages.0.layer.sampling.value_projection.weight",
            "model.decoder.layers.0.encoder_attn.value_proj.weight",
        ),
        ("decoder.stages.0.layer.feedforward.0.weight", "model.decoder.layers.0.fc1.weight"),
        ("decoder.up", "model.decoder.up"),
    ],
)
def test_names(ours: str, theirs: str) -> None:
    assert transformers_keys(ours) == (theirs,)


def test_queries_keys_and_values_are_three_tensors() -> None:
    prefix = "model.decoder.layers.1.self_attn"
    expected = tuple(f"{prefix}.{part}_proj.weight" for part in ("q", "k", "v"))
    assert transformers_keys("decoder.stages.1.layer.attention.in_proj_weight") == expected


@pytest.mark.parametrize("name", ["dfine_m", "rtdetr_r18", "rtdetrv2_r101"])
def test_no_two_tensors_share_a_name(name: str) -> None:
    with torch.device("meta"):
        keys = detectors.build(name, num_classes=80).state_dict().keys()
    names = [name for key in keys for name in transformers_keys(key)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("given", "spelling"),
    [
        ("model.encoder.aifi.0.layers.0.mlp.fc1.weight", "model.encoder.encoder.0.layers.0.fc1.weight"),
        ("model.decoder.layers.3.mlp.layers.1.bias", "model.decoder.layers.3.fc2.bias"),
        ("model.decoder.layers.3.self_attn.o_proj.bias", "model.decoder.layers.3.self_attn.out_proj.bias"),
        ("bbox_embed.2.layers.0.bias", "model.decoder.bbox_embed.2.layers.0.bias"),
        ("model.decoder.bbox_embed.2.layers.0.bias", "model.decoder.bbox_embed.2.layers.0.bias"),
    ],
)
def test_spellings(given: str, spelling: str) -> None:
    for pattern, replacement in TRANSFORMERS_SPELLINGS:
        given = re.sub(pattern, replacement, given)
    assert given == spelling
