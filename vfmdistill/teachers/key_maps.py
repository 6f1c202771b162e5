"""The names that authors and libraries gave to their tensors, translated into timm's."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn

from vfmdistill.errors import WeightsError
from vfmdistill.teachers.key_maps_efficientnet import from_efficientnet_pytorch
from vfmdistill.teachers.key_maps_meta import from_meta
from vfmdistill.teachers.key_maps_open_clip import trunk_of_open_clip
from vfmdistill.teachers.key_maps_transformers import from_transformers
from vfmdistill.teachers.nearest_fit import nearest_fit

# Tables that depend on the size of images, and how they are called: by OpenAI, OpenCLIP and BEiT-3, too.
_TABLES: Final = {
    "pos_embed": ("table of positions", ("pos_embed", "positional_embedding", "embed_positions.A.weight")),
    "relative_position_bias_table": ("table of relative positions", ("relative_position_bias_table",)),
}
_PATCHES: Final = "patch_embed.proj.weight"


def to_timm_names(state: Mapping[str, Tensor], network: nn.Module, name: str) -> dict[str, Tensor]:
    """Recognise the format of a state dict from its keys and return it with timm's keys.

    Understood: timm's own; transformers' DINOv2 and DINOv3, ViT and MAE, BEiT, CLIP, SigLIP, AIMv2, SAM, ConvNeXt and
    Hiera; Meta's DINO, DINOv2, DINOv3, MAE and SAM 2; the EfficientNets of `efficientnet_pytorch` and its Lite sibling;
    and whatever the ``checkpoint_filter_fn`` beside a timm model knows, which among others are OpenCLIP, OpenAI's CLIP,
    SAM, Perception Encoder, EVA and AIMv2. Other parts of a model, as a text encoder, a decoder or a classifier, are
    dropped where the network has none.

    Args:
        state: names and tensors as they are in the file.
        network: the timm network that they are for.
        name: the teacher, for messages.

    Raises:
        WeightsError: the format is known but cannot belong to this network.
    """
    state = trunk_of_open_clip(state, network)
    translated = from_transformers(state, network) or from_efficientnet_pytorch(state, network) or state
    translated = from_meta(translated, network, name)
    _check_patches(translated, network, name)
    # Each timm file has the rule of its own family beside the network's class. The rules alter what they are given.
    rule = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    fitted: Mapping[str, Tensor] = translated
    if rule is not None:
        # What a rule stumbles over belongs to another network: loading strictly lists it better than a rule's error.
        with contextlib.suppress(KeyError, AttributeError, RuntimeError, ValueError, TypeError):
            fitted = rule(dict(translated), network)
    _check_tables(translated, fitted, network, name)
    return _without_heads(fitted, network)


def _check_patches(given: Mapping[str, Tensor], network: nn.Module, name: str) -> None:
    """timm's rules resample patches of another size without a word, which would be another teacher."""
    own = network.state_dict().get(_PATCHES)
    source = next((key for ending in (_PATCHES, "conv1.weight") for key in given if key.endswith(ending)), None)
    if own is not None and source is not None and given[source].ndim == 4 and given[source].shape != own.shape:
        raise _misfit(name, "patch embedding", given[source], own, nearest_fit(given, name))


def _check_tables(given: Mapping[str, Tensor], fitted: Mapping[str, Tensor], network: nn.Module, name: str) -> None:
    """So they do with tables for another size of images. What they only cut shares the memory of what is given."""
    memory = {tensor.untyped_storage().data_ptr() for tensor in given.values()}
    own = network.state_dict()
    for key, tensor in fitted.items():
        ending = next((ending for ending in _TABLES if f".{key}".endswith(f".{ending}")), None)
        if ending is not None and key in own and tensor.untyped_storage().data_ptr() not in memory:
            what, endings = _TABLES[ending]
            source = key if key in given else next(source for source in given if source.endswith(endings))
            raise _misfit(name, what, given[source], own[key], nearest_fit(given, name))


def _misfit(name: str, what: str, given: Tensor, expected: Tensor, nearest: str) -> WeightsError:
    return WeightsError(
        f"the weights do not fit teacher {name!r}: their {what} is {tuple(given.shape)}, expected "
        f"{tuple(expected.shape)}. Give the file that belongs to this teacher.{nearest}"
    )


def _without_heads(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Drop a classifier or an attention pooling that the network was built without."""
    config: Any = getattr(network, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    own = network.state_dict()
    leaves = {f"{head}.{leaf}" for head in heads for leaf in ("weight", "bias")}
    return {
        key: tensor
        for key, tensor in state.items()
        if key in own or not (key in leaves or key.startswith("attn_pool."))
    }
