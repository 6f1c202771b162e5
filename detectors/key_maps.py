"""The authors' names of our tensors, in RT-DETR, RT-DETRv2, D-FINE, DEIM and RT-DETRv4."""

from __future__ import annotations

import re

# Our name → the authors', all rules in turn.
KEY_RULES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.stages_(\d+)\.", r"backbone.stages.\1."),
    (r"^backbone\.conv1\.0\.", "backbone.conv1.conv1_1.conv."),
    (r"^backbone\.conv1\.1\.", "backbone.conv1.conv1_1.norm."),
    (r"^backbone\.conv1\.3\.", "backbone.conv1.conv1_2.conv."),
    (r"^backbone\.conv1\.4\.", "backbone.conv1.conv1_2.norm."),
    (r"^backbone\.conv1\.6\.", "backbone.conv1.conv1_3.conv."),
    (r"^backbone\.bn1\.", "backbone.conv1.conv1_3.norm."),
    (r"^(backbone\.layer1\.0)\.downsample\.1\.", r"\1.short.conv."),
    (r"^(backbone\.layer1\.0)\.downsample\.2\.", r"\1.short.norm."),
    (r"^(backbone\.layer[234]\.0)\.downsample\.1\.", r"\1.short.conv.conv."),
    (r"^(backbone\.layer[234]\.0)\.downsample\.2\.", r"\1.short.conv.norm."),
    (r"^(backbone\.layer\d\.\d+)\.conv1\.", r"\1.branch2a.conv."),
    (r"^(backbone\.layer\d\.\d+)\.bn1\.", r"\1.branch2a.norm."),
    (r"^(backbone\.layer\d\.\d+)\.conv2\.", r"\1.branch2b.conv."),
    (r"^(backbone\.layer\d\.\d+)\.bn2\.", r"\1.branch2b.norm."),
    (r"^(backbone\.layer\d\.\d+)\.conv3\.", r"\1.branch2c.conv."),
    (r"^(backbone\.layer\d\.\d+)\.bn3\.", r"\1.branch2c.norm."),
    (r"^backbone\.layer1\.", "backbone.res_layers.0.blocks."),
    (r"^backbone\.layer2\.", "backbone.res_layers.1.blocks."),
    (r"^backbone\.layer3\.", "backbone.res_layers.2.blocks."),
    (r"^backbone\.layer4\.", "backbone.res_layers.3.blocks."),
    (r"^encoder\.input_projections\.", "encoder.input_proj."),
    (r"^encoder\.aifi\.", "encoder.encoder.0."),
    (r"^encoder\.laterals\.", "encoder.lateral_convs."),
    (r"^encoder\.downsamples\.(\d+)\.0\.", r"encoder.downsample_convs.\1.0.cv1."),
    (r"^encoder\.downsamples\.(\d+)\.1\.", r"encoder.downsample_convs.\1.0.cv2."),
    (r"^encoder\.downsamples\.", "encoder.downsample_convs."),
    (r"^encoder\.top_down\.", "encoder.fpn_blocks."),
    (r"^encoder\.bottom_up\.", "encoder.pan_blocks."),
    (r"\.(main|conv3x3)\.", ".conv1."),
    (r"\.(shortcut|conv1x1)\.", ".conv2."),
    (r"(?<=_blocks)(\.\d+(?:\.\w+\.0)?)\.blocks\.", r"\1.bottlenecks."),
    (r"(?<=_blocks)(\.\d+)\.leave\.", r"\1.conv3."),
    (r"(?<=_blocks)(\.\d+)\.enter\.", r"\1.cv1."),
    (r"(?<=_blocks)(\.\d+)\.first\.", r"\1.cv2."),
    (r"(?<=_blocks)(\.\d+)\.second\.", r"\1.cv3."),
    (r"(?<=_blocks)(\.\d+)\.join\.", r"\1.cv4."),
    (r"^decoder\.input_projections\.", "decoder.input_proj."),
    (r"^decoder\.selection\.projection\.", "decoder.enc_output.proj."),
    (r"^decoder\.selection\.norm\.", "decoder.enc_output.norm."),
    (r"^decoder\.selection\.score_head\.", "decoder.enc_score_head."),
    (r"^decoder\.selection\.box_head\.", "decoder.enc_bbox_head."),
    (r"^decoder\.denoising_embedding\.", "decoder.denoising_class_embed."),
    (r"^decoder\.position_head\.", "decoder.query_pos_head."),
    (r"^decoder\.first_box_head\.", "decoder.pre_bbox_head."),
    (r"^decoder\.stages\.(\d+)\.score_head\.", r"decoder.dec_score_head.\1."),
    (r"^decoder\.stages\.(\d+)\.corner_head\.", r"decoder.dec_bbox_head.\1."),
    (r"^decoder\.stages\.(\d+)\.box_head\.", r"decoder.dec_bbox_head.\1."),
    (r"^decoder\.stages\.(\d+)\.quality\.perceptron\.", r"decoder.decoder.lqe_layers.\1.reg_conf."),
    (r"^decoder\.stages\.(\d+)\.layer\.norm2\.", r"decoder.decoder.layers.\1.norm3."),
    (r"^decoder\.stages\.(\d+)\.layer\.merge\.(weight|bias)$", r"decoder.decoder.layers.\1.norm2.\2"),
    (r"^decoder\.stages\.(\d+)\.layer\.", r"decoder.decoder.layers.\1."),
    (r"\.merge\.linear\.", ".gateway.gate."),
    (r"\.merge\.norm\.", ".gateway.norm."),
    (r"\.sampling\.offsets\.", ".cross_attn.sampling_offsets."),
    (r"\.sampling\.weights\.", ".cross_attn.attention_weights."),
    (r"\.sampling\.value_projection\.", ".cross_attn.value_proj."),
    (r"\.sampling\.output_projection\.", ".cross_attn.output_proj."),
    (r"\.attention\.", ".self_attn."),
    (r"\.feedforward\.0\.", ".linear1."),
    (r"\.feedforward\.2\.", ".linear2."),
)

# What stands in the authors' checkpoints beside the weights of a detector, and why it is not needed.
IGNORED: tuple[tuple[str, str], ...] = (
    (r"^encoder\.feature_projector\.", "belongs to the semantic injector, not to the student"),
    (r"^decoder\.(anchors|valid_mask)$|^encoder\.pos_embed\d*$", "computed for the input size at hand"),
    (r"^decoder\.decoder\.(up|reg_scale)$", "a second name of decoder.up and decoder.reg_scale"),
    (r"\.num_points_scale$", "follows from the number of sampling points"),
    (r"\.num_batches_tracked$", "counts steps of a batch norm that is frozen here"),
)


def reference_key(key: str) -> str:
    """Return the name that a tensor of ours has in the authors' state dicts."""
    for pattern, replacement in KEY_RULES:
        key = re.sub(pattern, replacement, key)
    return key
