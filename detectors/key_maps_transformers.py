"""The names of our tensors in the checkpoints of transformers' RT-DETR, RT-DETRv2 and D-FINE."""

from __future__ import annotations

import re

from detectors.key_maps import reference_key

# The authors' name → transformers', all rules in turn.
_RULES: tuple[tuple[str, str], ...] = (
    (r"^backbone\.stem\.", "backbone.embedder."),
    (r"^backbone\.stages\.", "backbone.encoder.stages."),
    (r"^backbone\.conv1\.conv1_1\.", "backbone.embedder.embedder.0."),
    (r"^backbone\.conv1\.conv1_2\.", "backbone.embedder.embedder.1."),
    (r"^backbone\.conv1\.conv1_3\.", "backbone.embedder.embedder.2."),
    (r"^backbone\.res_layers\.(\d+)\.blocks\.(\d+)\.", r"backbone.encoder.stages.\1.layers.\2."),
    (r"\.branch2a\.", ".layer.0."),
    (r"\.branch2b\.", ".layer.1."),
    (r"\.branch2c\.", ".layer.2."),
    (r"\.short\.conv\.(conv|norm)\.", r".shortcut.1.\1."),
    (r"\.short\.(conv|norm)\.", r".shortcut.\1."),
    (r"^(backbone\..*)\.conv\.(\w+)$", r"\1.convolution.\2"),
    (r"^(backbone\..*)\.(bn|norm)\.(\w+)$", r"\1.normalization.\3"),
    (r"^backbone\.", "model.backbone.model."),
    (r"^encoder\.input_proj\.(\d+)\.conv\.", r"model.encoder_input_proj.\1.0."),
    (r"^encoder\.input_proj\.(\d+)\.norm\.", r"model.encoder_input_proj.\1.1."),
    (r"^encoder\.downsample_convs\.(\d+)\.0\.cv(\d)\.", r"encoder.downsample_convs.\1.conv\2."),
    (r"^(encoder\.\w+_blocks\.\d+)\.cv2\.0\.", r"\1.csp_rep1."),
    (r"^(encoder\.\w+_blocks\.\d+)\.cv3\.0\.", r"\1.csp_rep2."),
    (r"^(encoder\.\w+_blocks\.\d+)\.cv2\.1\.", r"\1.conv2."),
    (r"^(encoder\.\w+_blocks\.\d+)\.cv3\.1\.", r"\1.conv3."),
    (r"^(encoder\.\w+_blocks\.\d+)\.cv(\d)\.", r"\1.conv\2."),
    (r"^encoder\.", "model.encoder."),
    (r"^(model\.encoder\.encoder\.0\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"^(model\.encoder\.encoder\.0\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
    (r"^decoder\.input_proj\.(\d+)\.conv\.", r"model.decoder_input_proj.\1.0."),
    (r"^decoder\.input_proj\.(\d+)\.norm\.", r"model.decoder_input_proj.\1.1."),
    (r"^decoder\.enc_output\.proj\.", "model.enc_output.0."),
    (r"^decoder\.enc_output\.norm\.", "model.enc_output.1."),
    (r"^decoder\.(enc_score_head|enc_bbox_head|denoising_class_embed)\.", r"model.\1."),
    (r"^decoder\.dec_score_head\.", "model.decoder.class_embed."),
    (r"^decoder\.dec_bbox_head\.", "model.decoder.bbox_embed."),
    (r"^decoder\.decoder\.", "decoder."),
    (r"^decoder\.", "model.decoder."),
    (r"^(model\.decoder\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"^(model\.decoder\.layers\.\d+)\.norm2\.", r"\1.encoder_attn_layer_norm."),
    (r"^(model\.decoder\.layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"\.linear(\d)\.", r".fc\1."),
)

# Other spellings of the names above: those of transformers' modules, and heads that it keeps a second time.
TRANSFORMERS_SPELLINGS: tuple[tuple[str, str], ...] = (
    (r"^model\.encoder\.aifi\.", "model.encoder.encoder."),
    (r"\.self_attn\.o_proj\.", ".self_attn.out_proj."),
    (r"(\.layers\.\d+)\.mlp\.layers\.0\.", r"\1.fc1."),
    (r"(\.layers\.\d+)\.mlp\.layers\.1\.", r"\1.fc2."),
    (r"(\.layers\.\d+)\.mlp\.(fc\d)\.", r"\1.\2."),
    (r"^(class_embed|bbox_embed)\.", r"model.decoder.\1."),
)

# What stands in transformers' checkpoints beside the weights of a detector, and why it is not needed.
TRANSFORMERS_IGNORED: tuple[tuple[str, str], ...] = (
    (r"^model\.(anchors|valid_mask)$", "computed for the input size at hand"),
    (r"\.(num|n)_points_scale$", "follows from the number of sampling points"),
    (r"\.num_batches_tracked$", "counts steps of a batch norm that is frozen here"),
)


def transformers_keys(key: str) -> tuple[str, ...]:
    """Return the names that a tensor of ours has in transformers' checkpoints.

    Projections of queries, keys and values, which are one tensor here, are three there: laid one behind the other, in
    the order of the names, they are ours.
    """
    key = reference_key(key)
    for pattern, replacement in _RULES:
        key = re.sub(pattern, replacement, key)
    if fused := re.fullmatch(r"(.*\.self_attn)\.in_proj_(weight|bias)", key):
        return tuple(f"{fused[1]}.{part}_proj.{fused[2]}" for part in "qkv")
    return (key,)
