"""How transformers names the tensors of its image encoders, family by family, beside timm's or their authors' names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_SAME: Final = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")


@dataclass(frozen=True)
class Naming:
    """How transformers names one family of encoders.

    Attributes:
        marker: a key that files of this family have and no others; what stands in front of it there is the prefix of
            the encoder. Tensors without that prefix belong to other parts, such as a text encoder or a decoder.
        layer: a regular expression for the beginning of a key inside a layer.
        block: what it becomes; ``{n}`` counts layers through all stages, ``{s}`` and ``{b}`` are its groups.
        inside: modules and parameters of a layer.
        outside: the others, as regular expressions.
        unused: beginnings of keys that a teacher does not run.
    """

    marker: str
    layer: str
    block: str
    inside: Mapping[str, str]
    outside: Mapping[str, str]
    unused: tuple[str, ...] = ()


_VIT = Naming(
    marker="encoder.layer.0.attention.attention.query.weight",
    layer=r"encoder\.layer\.(?P<b>\d+)\.",
    block="blocks.{b}.",
    inside={
        **{same: same for same in _SAME},
        "layernorm_before": "norm1",
        "attention.attention.query": "attn.q",
        "attention.attention.key": "attn.k",
        "attention.attention.value": "attn.v",
        "attention.attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "lambda_1": "gamma_1",
        "lambda_2": "gamma_2",
        "layernorm_after": "norm2",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "mlp.weights_in": "mlp.w12",
        "mlp.weights_out": "mlp.w3",
    },
    outside={
        r"embeddings\.(cls_token|mask_token|register_tokens)": r"\1",
        r"embeddings\.position_embeddings": "pos_embed",
        r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
        r"layernorm": "norm",
        r"pooler\.layernorm": "fc_norm",
    },
    unused=("pooler.dense.",),
)

_DINOV3 = Naming(
    marker="layer.0.mlp.up_proj.weight",
    layer=r"layer\.(?P<b>\d+)\.",
    block="blocks.{b}.",
    inside={
        "norm1": "norm1",
        "norm2": "norm2",
        "attention.q_proj": "attn.q",
        "attention.k_proj": "attn.k",
        "attention.v_proj": "attn.v",
        "attention.o_proj": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
        "mlp.up_proj": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
    },
    outside={
        r"embeddings\.(cls_token|mask_token)": r"\1",
        r"embeddings\.register_tokens": "storage_tokens",
        r"embeddings\.patch_embeddings": "patch_embed.proj",
        r"norm": "norm",
    },
)

_DINOV3_GATED = Naming(
    marker="layer.0.mlp.gate_proj.weight",
    layer=_DINOV3.layer,
    block=_DINOV3.block,
    inside={**_DINOV3.inside, "mlp.gate_proj": "mlp.w1", "mlp.up_proj": "mlp.w2", "mlp.down_proj": "mlp.w3"},
    outside=_DINOV3.outside,
)

_CLIP_AND_SIGLIP = Naming(
    marker="embeddings.patch_embedding.weight",
    layer=r"encoder\.layers\.(?P<b>\d+)\.",
    block="blocks.{b}.",
    inside={
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.q_proj": "attn.q",
        "self_attn.k_proj": "attn.k",
        "self_attn.v_proj": "attn.v",
        "self_attn.out_proj": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    },
    outside={
        r"embeddings\.class_embedding": "cls_token",
        r"embeddings\.position_embedding\.weight": "pos_embed",
        r"embeddings\.patch_embedding": "patch_embed.proj",
        r"pre_layrnorm": "norm_pre",
        r"post_layernorm": "norm",
        r"head\.probe": "attn_pool.latent",
        r"head\.attention\.in_proj_(weight|bias)": r"attn_pool.qkv.\1",
        r"head\.attention\.out_proj": "attn_pool.proj",
        r"head\.layernorm": "attn_pool.norm",
        r"head\.(mlp\.fc[12])": r"attn_pool.\1",
    },
    unused=("embeddings.position_ids",),
)

_AIMV2 = Naming(
    marker="embeddings.patch_embed.weight",
    layer=r"encoder\.layers\.(?P<b>\d+)\.",
    block="blocks.{b}.",
    inside={
        "rms_norm1": "norm1",
        "rms_norm2": "norm2",
        "attention.q_proj": "attn.q",
        "attention.k_proj": "attn.k",
        "attention.v_proj": "attn.v",
        "attention.out_proj": "attn.proj",
        "ffn.gate_proj": "mlp.fc1_g",
        "ffn.up_proj": "mlp.fc1_x",
        "ffn.down_proj": "mlp.fc2",
    },
    outside={
        r"embeddings\.position_embedding\.weight": "pos_embed",
        r"embeddings\.patch_embed": "patch_embed.proj",
        r"embeddings\.rms_norm": "patch_embed.norm",
        r"rms_norm": "norm",
    },
    unused=("head.", "embeddings.position_ids"),
)

_SAM = Naming(
    marker="neck.conv1.weight",
    layer=r"layers\.(?P<b>\d+)\.",
    block="blocks.{b}.",
    inside={
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        **{same: same for same in ("attn.qkv", "attn.proj", "attn.rel_pos_h", "attn.rel_pos_w")},
        "mlp.lin1": "mlp.fc1",
        "mlp.lin2": "mlp.fc2",
    },
    outside={
        r"pos_embed": "pos_embed",
        r"patch_embed\.projection": "patch_embed.proj",
        r"neck\.conv1": "neck.0",
        r"neck\.layer_norm1": "neck.1",
        r"neck\.conv2": "neck.2",
        r"neck\.layer_norm2": "neck.3",
    },
)

_CONVNEXT = Naming(
    marker="encoder.stages.0.layers.0.dwconv.weight",
    layer=r"encoder\.stages\.(?P<s>\d+)\.layers\.(?P<b>\d+)\.",
    block="stages.{s}.blocks.{b}.",
    inside={
        "dwconv": "conv_dw",
        "layernorm": "norm",
        "pwconv1": "mlp.fc1",
        "pwconv2": "mlp.fc2",
        "grn": "mlp.grn",
        "layer_scale_parameter": "gamma",
    },
    outside={
        r"embeddings\.patch_embeddings": "stem.0",
        r"embeddings\.layernorm": "stem.1",
        r"encoder\.stages\.(\d+)\.downsampling_layer\.(\d)": r"stages.\1.downsample.\2",
        r"layernorm": "head.norm",
    },
)

_DINOV3_CONVNEXT = Naming(
    marker="stages.0.downsample_layers.0.weight",
    layer=r"stages\.(?P<s>\d+)\.layers\.(?P<b>\d+)\.",
    block="stages.{s}.blocks.{b}.",
    inside={
        "depthwise_conv": "conv_dw",
        "layer_norm": "norm",
        "pointwise_conv1": "mlp.fc1",
        "pointwise_conv2": "mlp.fc2",
        "gamma": "gamma",
    },
    outside={
        r"stages\.0\.downsample_layers\.(\d)": r"stem.\1",
        r"stages\.(\d+)\.downsample_layers\.(\d)": r"stages.\1.downsample.\2",
        r"layer_norm": "head.norm",
    },
)

_HIERA = Naming(
    marker="encoder.stages.0.layers.0.attn.qkv.weight",
    layer=r"encoder\.stages\.(?P<s>\d+)\.layers\.(?P<b>\d+)\.",
    block="blocks.{n}.",
    inside={
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        **{same: same for same in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "proj")},
    },
    outside={
        r"embeddings\.position_embeddings": "pos_embed",
        r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
        r"pooler\.layernorm": "head.norm",
    },
)

# The first whose marker a file has decides: a gated DINOv3 has the other's marker too.
NAMINGS: Final = (
    _VIT,
    _DINOV3_GATED,
    _DINOV3,
    _CLIP_AND_SIGLIP,
    _AIMV2,
    _SAM,
    _CONVNEXT,
    _DINOV3_CONVNEXT,
    _HIERA,
)
