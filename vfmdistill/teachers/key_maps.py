"""The names that authors gave to their tensors, translated into timm's."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill.errors import WeightsError


def to_timm_names(state: Mapping[str, Tensor], network: nn.Module, name: str) -> dict[str, Tensor]:
    """Recognise the format of a state dict from its keys and return it with timm's keys.

    Understood: timm's own; Meta's DINOv2 and DINOv3; the EfficientNets of `efficientnet_pytorch` and its Lite sibling;
    and whatever the ``checkpoint_filter_fn`` beside a timm model knows, which among others is OpenCLIP. The classifier
    is dropped where the network has none.

    Args:
        state: names and tensors as they are in the file.
        network: the timm network that they are for.
        name: the teacher, for messages.

    Raises:
        WeightsError: the format is known but cannot belong to this network.
    """
    state = dict(state)
    _check_patch(state, network, name)
    if "_conv_stem.weight" in state:
        state = _from_efficientnet_pytorch(state, network)
    if "patch_embed.proj.weight" in state:
        state = _without_chunks(state, network)
        if "storage_tokens" in state:
            _drop_zero_biases(state, network, name)
        elif "register_tokens" in state or "blocks.0.mlp.w12.weight" in state:
            # timm knows a DINOv2 file by its mask token, which a file meant for inference may lack.
            state.setdefault("mask_token", torch.empty(0))
    # Each timm file has the rule of its own family beside the network's class.
    rule = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if rule is not None:
        try:
            state = rule(state, network)
        except (KeyError, AttributeError, RuntimeError, ValueError) as error:
            raise WeightsError(f"the weights cannot be translated for teacher {name!r}: {error!r}") from error
    return _without_classifier(state, network)


def _check_patch(state: Mapping[str, Tensor], network: nn.Module, name: str) -> None:
    """timm resamples a patch embedding of another size without a word, which would be another teacher."""
    given = state.get("patch_embed.proj.weight")
    own = network.state_dict().get("patch_embed.proj.weight")
    if given is not None and own is not None and given.ndim == 4 and given.shape != own.shape:
        raise WeightsError(
            f"the weights do not fit teacher {name!r}: their patch embedding is {tuple(given.shape)}, "
            f"expected {tuple(own.shape)}. Give the file that belongs to this teacher."
        )


def _without_chunks(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Meta trains DINOv2 with its blocks in chunks, ``blocks.CHUNK.BLOCK.…``, where BLOCK counts through."""
    own = network.state_dict()
    return {
        key if key in own else re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): tensor
        for key, tensor in state.items()
    }


def _drop_zero_biases(state: dict[str, Tensor], network: nn.Module, name: str) -> None:
    """Meta's DINOv3 files carry biases of queries, keys and values that are zero; timm's networks have none."""
    own = network.state_dict()
    for key in [key for key in state if key.endswith("attn.qkv.bias")]:
        if key.replace("qkv.bias", "q_bias") in own:
            continue
        if state.pop(key).count_nonzero():
            raise WeightsError(
                f"the weights do not fit teacher {name!r}: {key} is not zero and the network has no such bias. "
                "Use timm's variant with biases: its name has 'qkvb' in it."
            )


def _from_efficientnet_pytorch(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """`efficientnet_pytorch` counts blocks through, and counts the norms of a block from its expansion, if any."""
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    stages: Any = network.blocks
    blocks = [f"blocks.{s}.{b}" for s, stage in enumerate(stages) for b in range(len(stage))]
    plain = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    expanded = {
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


def _without_classifier(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    config: Any = network.pretrained_cfg
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    own = network.state_dict()
    leaves = {f"{head}.{leaf}" for head in heads for leaf in ("weight", "bias")}
    return {key: tensor for key, tensor in state.items() if key not in leaves or key in own}
