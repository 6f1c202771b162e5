"""The names of OpenCLIP's and OpenAI's CLIP: its own image towers, and those that it takes from timm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn

from vfmdistill.teachers.key_maps_transformers import from_transformers

_TOWER: Final = "visual."
_TRUNK: Final = "visual.trunk."

# timm's names, as regular expressions, and OpenCLIP's.
_FROM_TIMM: Final = (
    (r"blocks\.(\d+)\.norm([12])\.", r"transformer.resblocks.\1.ln_\2."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"transformer.resblocks.\1.attn.in_proj_"),
    (r"blocks\.(\d+)\.attn\.proj\.", r"transformer.resblocks.\1.attn.out_proj."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"patch_embed\.proj\.", "conv1."),
    (r"norm_pre\.", "ln_pre."),
    (r"norm\.", "ln_post."),
    (r"pos_embed$", "positional_embedding"),
    (r"cls_token$", "class_embedding"),
)


def to_open_clip_names(state: Mapping[str, Tensor], tower: nn.Module) -> dict[str, Tensor]:
    """Recognise the format of a state dict from its keys and return it with the keys of an image tower of OpenCLIP's.

    Understood: OpenCLIP's and OpenAI's own, with or without the ``visual.`` in front, transformers' CLIP, and timm's
    copies of CLIP. The text tower is dropped, and the projections that the tower was built without.

    Args:
        state: names and tensors as they are in the file.
        tower: OpenCLIP's `VisionTransformer` that they are for.
    """
    if any(key.startswith(_TOWER) for key in state):
        named = {key.removeprefix(_TOWER): tensor for key, tensor in state.items() if key.startswith(_TOWER)}
    elif "conv1.weight" in state:
        named = dict(state)
    else:
        named = {}
        for key, tensor in (from_transformers(state, tower) or state).items():
            for pattern, replacement in _FROM_TIMM:
                renamed, found = re.subn(f"^{pattern}", replacement, key)
                if found:
                    key = renamed
                    break
            named[key] = tensor
    own = tower.state_dict()
    fitted = {}
    for key, tensor in named.items():
        if key in own and tensor.numel() == own[key].numel() and tensor.ndim != own[key].ndim:
            tensor = tensor.reshape(own[key].shape)  # tokens and positions without the axis of images
        if key in own or key not in ("proj", "head.weight", "head.bias"):
            fitted[key] = tensor
    return fitted


def trunk_of_open_clip(state: Mapping[str, Tensor], network: Any) -> Mapping[str, Tensor]:
    """Return the timm network inside a checkpoint of OpenCLIP's; other states are returned as they are.

    Args:
        state: names and tensors as they are in the file.
        network: the timm network that they are for.
    """
    if not any(key.startswith(_TRUNK) for key in state):
        return state
    if "head.pre_logits.fc.weight" in network.state_dict():
        return state  # it takes its head from outside of the trunk, as timm's rule for it knows
    return {key.removeprefix(_TRUNK): tensor for key, tensor in state.items() if key.startswith(_TRUNK)}
