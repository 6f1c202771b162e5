"""The names that transformers gives to the tensors of its image encoders, translated into timm's or their authors'."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vfmdistill.teachers.namings_transformers import NAMINGS, Naming


def from_transformers(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor] | None:
    """Return a state that transformers has saved under timm's names, or None if it is not one of transformers'.

    DINOv2 and DINOv3 come out under Meta's names, which only differ in how tokens and SwiGLUs are called. Keys that
    are not known keep their names.

    Args:
        state: names and tensors as they are in the file.
        network: the timm network that they are for.
    """
    own = network.state_dict()
    if own.keys() <= state.keys():
        return None
    for naming in NAMINGS:
        prefixes = [key.removesuffix(naming.marker) for key in state if f".{key}".endswith(f".{naming.marker}")]
        if prefixes:
            prefix = min(prefixes, key=len)
            encoder = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            return _like(_fused(_renamed(encoder, naming), own), own)
    return None


def _renamed(state: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    layers = {match.group(): match for match in (re.match(naming.layer, key) for key in state) if match}
    in_order = sorted(layers, key=lambda layer: [int(number) for number in layers[layer].groups()])
    blocks = {layer: naming.block.format(n=n, **layers[layer].groupdict()) for n, layer in enumerate(in_order)}
    renamed = {}
    for key, tensor in state.items():
        if key.startswith(naming.unused):
            continue
        match = re.match(naming.layer, key)
        if match:
            module, leaf = _parted(key[match.end() :], naming.inside)
            key = f"{blocks[match.group()]}{naming.inside.get(module, module)}{leaf}"
        else:
            for pattern, replacement in naming.outside.items():
                found = re.fullmatch(rf"(?:{pattern})(?P<leaf>\.weight|\.bias)?", key)
                if found:
                    key = found.expand(replacement) + (found["leaf"] or "")
                    break
        renamed[key] = tensor
    return renamed


def _parted(key: str, known: Mapping[str, str]) -> tuple[str, str]:
    """Part a key into what is translated and the leaf behind it."""
    if key in known:
        return key, ""
    module, _, leaf = key.rpartition(".")
    return module, f".{leaf}"


def _fused(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put queries, keys and values together, where the file has all of them.

    Keys may be without biases, which the softmax would not see: they are zero, and in some networks there are none.
    """
    fused = {}
    parts: defaultdict[tuple[str, str], dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in state.items():
        match = re.fullmatch(r"(.*\battn\.)([qkv])\.(weight|bias)", key)
        if match:
            parts[match[1], match[3]][match[2]] = tensor
        elif key.startswith("attn_pool.qkv."):
            leaf = key.rpartition(".")[2]
            fused[f"attn_pool.q.{leaf}"], fused[f"attn_pool.kv.{leaf}"] = tensor.tensor_split([len(tensor) // 3])
        else:
            fused[key] = tensor
    for (base, leaf), part in parts.items():
        if leaf == "bias" and part.keys() == {"q", "v"}:
            if f"{base}q_bias" in own:
                fused[f"{base}q_bias"], fused[f"{base}v_bias"] = part["q"], part["v"]
                continue
            part["k"] = torch.zeros_like(part["q"])
        if part.keys() == {"q", "k", "v"}:
            fused[f"{base}qkv.{leaf}"] = torch.cat([part[name] for name in "qkv"])
        else:
            fused |= {f"{base}{name}.{leaf}": tensor for name, tensor in part.items()}
    return fused


def _like(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors the shapes of the network's where they differ in axes of length one only.

    SigLIP 2 for any aspect ratio keeps its patch embedding as a linear layer over (height, width, channel).
    """
    fitted = {}
    for key, tensor in state.items():
        if key in own and _long_axes(tensor) == _long_axes(own[key]):
            tensor = tensor.reshape(own[key].shape)
        elif key == "patch_embed.proj.weight" and tensor.ndim == 2:
            side = math.isqrt(tensor.shape[1] // 3)
            tensor = tensor.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2).contiguous()
        elif key == "pos_embed" and tensor.ndim == 2:
            tensor = tensor.unsqueeze(0)
        fitted[key] = tensor
    return fitted


def _long_axes(tensor: Tensor) -> list[int]:
    return [length for length in tensor.shape if length > 1]
