"""The names that `efficientnet_pytorch` and its Lite sibling give to their tensors, translated into timm's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def from_efficientnet_pytorch(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor] | None:
    """Return a state of `efficientnet_pytorch` under timm's names, or None if it is no such state.

    Its blocks count through all stages, and the norms of a block count from its expansion, if it has one.

    Args:
        state: names and tensors as they are in the file.
        network: the timm network that they are for.
    """
    stages: Any = getattr(network, "blocks", None)
    if "_conv_stem.weight" not in state or stages is None:
        return None
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    blocks = [f"blocks.{s}.{b}" for s, stage in enumerate(stages) for b, _ in enumerate(stage.children())]
    excite = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    plain = {**excite, "_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanded = {
        **excite,
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    renamed = {}
    for key, tensor in state.items():
        match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if match and int(match[1]) < len(blocks):
            parts = expanded if f"_blocks.{match[1]}._expand_conv.weight" in state else plain
            key = f"{blocks[int(match[1])]}.{parts.get(match[2], match[2])}.{match[3]}"
        else:
            module, _, leaf = key.partition(".")
            key = f"{outside.get(module, module)}.{leaf}"
        renamed[key] = tensor
    return renamed
