"""What Meta's own files of DINO, DINOv2, DINOv3, MAE and SAM 2 hold beyond what timm's rules for them expect."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vfmdistill.errors import WeightsError

_DECODER = ("decoder_", "mask_token", "multi_scale_fusion_heads.")
_SAM2 = "image_encoder.trunk."


def from_meta(state: Mapping[str, Tensor], network: nn.Module, name: str) -> dict[str, Tensor]:
    """Return a state of Meta's in the form that timm's rules understand; others are returned as they are.

    Args:
        state: names and tensors, without prefixes.
        network: the timm network that they are for.
        name: the teacher, for the message.

    Raises:
        WeightsError: the state has biases, other than zero, that the network lacks.
    """
    state = dict(state)
    if "patch_embed.proj.weight" in state:
        if "decoder_pos_embed" in state:  # MAE or Hiera with the decoder of its training
            state = {key: tensor for key, tensor in state.items() if not key.startswith(_DECODER)}
        state = _without_chunks(state, network)
        if "storage_tokens" in state:
            _drop_zero_biases(state, network, name)
        elif "register_tokens" in state or "blocks.0.mlp.w12.weight" in state:
            # timm knows a DINOv2 file by its mask token, which a file meant for inference may lack.
            state.setdefault("mask_token", torch.empty(0))
    elif "downsample_layers.0.0.weight" in state:
        # DINOv3's ConvNeXts list their final norm twice.
        state = {key: tensor for key, tensor in state.items() if not key.startswith("norms.")}
    elif f"{_SAM2}pos_embed_window" in state:
        state = {key.removeprefix(_SAM2): tensor for key, tensor in state.items() if key.startswith(_SAM2)}
        # SAM 2's trunk ends without a norm; the one in timm's head was never trained.
        for key, value in (("head.norm.weight", 1.0), ("head.norm.bias", 0.0)):
            if key in network.state_dict():
                state[key] = torch.full_like(network.state_dict()[key], value)
    return state


def _without_chunks(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Meta trains DINOv2 with its blocks in chunks, ``blocks.CHUNK.BLOCK.…``, where BLOCK counts through."""
    own = network.state_dict()
    return {
        key if key in own else re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", key): tensor
        for key, tensor in state.items()
    }


def _drop_zero_biases(state: dict[str, Tensor], network: nn.Module, name: str) -> None:
    """Meta's DINOv3 files carry biases of attention that are zero or masked to zero; timm's networks have none."""
    own = network.state_dict()
    for key in [key for key in state if key.endswith("attn.qkv.bias")]:
        if key.replace("qkv.bias", "q_bias") in own:
            continue
        bias, mask = state.pop(key), state.get(f"{key}_mask")
        if (bias if mask is None else bias[mask != 0]).count_nonzero():
            raise WeightsError(
                f"the weights do not fit teacher {name!r}: {key} is not zero and the network has no such bias. "
                "Use timm's variant with biases: its name has 'qkvb' in it."
            )
