"""Backbones, from timm: images in, maps of several strides out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from detectors.checkpoints import read_tensors
from vfmdistill.errors import WeightsError, unknown_name


def build_backbone(
    name: str,
    out_indices: Sequence[int],
    *,
    pretrained: bool | str | Path = False,
    freeze_norms: bool = False,
    freeze_stem: bool = False,
) -> nn.Module:
    """Return a timm network that gives the maps of some of its stages, fine to coarse.

    Its `feature_info` tells their channels and strides, as everywhere in timm.

    Args:
        name: timm model, with or without a tag that names its weights.
        out_indices: the stages whose maps are returned, counted from zero.
        pretrained: True for the weights that the tag names, from timm's cache or the network; or a file that holds
            them (.safetensors, or .pth with tensors only).
        freeze_norms: turn batch norms into constants: no parameters, no batch statistics.
        freeze_stem: do not train the stem.

    Raises:
        UnknownNameError: timm has no such model.
        WeightsError: the weights cannot be had, or the file does not fit.
    """
    import timm
    from timm.layers import freeze_batch_norm_2d

    if not timm.is_model(name):
        raise unknown_name("backbone", name, timm.list_models(), "timm.list_models() lists all.")
    from_hub = pretrained is True
    try:
        backbone: nn.Module = timm.create_model(
            name, pretrained=from_hub, features_only=True, out_indices=tuple(out_indices)
        )
    except Exception as error:  # whatever the hub's client, the network or the disk raise
        if not from_hub:
            raise
        raise WeightsError(
            f"the ImageNet weights of the backbone {name!r} are neither in timm's cache nor within reach "
            f"({type(error).__name__}: {error}). Give a local file, pretrained_backbone='/path/to/model.safetensors' "
            f"or --backbone-weights (it is published as huggingface.co/timm/{name}); or start from random weights with "
            "pretrained_backbone=False or --no-pretrained-backbone."
        ) from error
    if not isinstance(pretrained, bool):
        _load_file(backbone, name, Path(pretrained))
    if freeze_norms:
        backbone = freeze_batch_norm_2d(backbone)
    if freeze_stem:
        backbone.get_submodule("stem").requires_grad_(False)
    return backbone


def _load_file(backbone: nn.Module, name: str, path: Path) -> None:
    # timm's extractor flattens stages.0 to stages_0; classifiers are of no use here.
    given = {re.sub(r"^stages\.(\d+)", r"stages_\1", key): value for key, value in read_tensors(path).items()}
    wanted = backbone.state_dict()
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    misshapen = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    if missing or misshapen:
        raise WeightsError(
            f"{path} does not hold the weights of {name!r}: {len(missing)} tensors are missing (first: {missing[:3]}), "
            f"{len(misshapen)} have another shape (first: {misshapen[:3]})."
        )
    backbone.load_state_dict({key: value for key, value in given.items() if key in wanted}, strict=False)
