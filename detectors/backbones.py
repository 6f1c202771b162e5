"""Backbones, from timm: images in, maps of several strides out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detectors.key_maps import reference_key
from detectors.state_dict import read_tensors
from vfmdistill.errors import InputError, WeightsError, unknown_name

RESNET = re.compile(r"resnet\d+d\b")
RESNET_STEM = ("conv1", "bn1")


def build_backbone(
    name: str,
    stages: Sequence[int],
    *,
    pretrained: bool | str | Path = False,
    freeze_norms: bool = False,
    freeze_stem: bool = False,
) -> nn.Module:
    """Return a timm network that gives the maps of some of its stages, fine to coarse.

    Its `feature_info` tells their channels and strides, as everywhere in timm.

    timm's resnet18d to resnet101d become the ResNet-vd of RT-DETR, where the first block of *every* stage has a
    projection in its shortcut. Where timm's have none (first stage of 18 and 34) timm's weights have none either: there
    the projection starts as the identity. Without weights, convolutions start as torch draws them, as
    the authors' do; timm draws them otherwise.

    Args:
        name: timm model, with or without a tag that names its weights.
        stages: the stages whose maps are returned, counted from zero; the stem is none.
        pretrained: True for the weights that the tag names, from timm's cache or the network; or a file that holds
            them (.safetensors, or .pth with tensors only), under timm's names or those of RT-DETR's and D-FINE's
            authors.
        freeze_norms: turn batch norms into constants: no parameters, no batch statistics.
        freeze_stem: do not train the stem.

    Raises:
        UnknownNameError: timm has no such model.
        InputError: the network has no such stages.
        WeightsError: the weights cannot be had, or the file does not fit.
    """
    import timm
    from timm.layers import freeze_batch_norm_2d

    if not timm.is_model(name):
        raise unknown_name("backbone", name, timm.list_models(), "timm.list_models() lists all.")
    resnet = RESNET.match(name) is not None
    options: dict[str, Any] = {"features_only": True, "out_indices": tuple(stages)}
    if resnet:  # timm counts the stem, and starts the last norm of each block at zero
        options |= {"out_indices": tuple(stage + 1 for stage in stages), "zero_init_last": False}
    from_hub = pretrained is True
    try:
        backbone: nn.Module = timm.create_model(name, pretrained=from_hub, **options)
    except Exception as error:  # whatever the hub's client, the network or the disk raise
        if isinstance(error, IndexError):
            raise InputError(f"the backbone {name!r} does not have all of the stages {tuple(stages)}.") from error
        if not from_hub:
            raise
        raise WeightsError(
            f"the ImageNet weights of the backbone {name!r} are neither in timm's cache nor within reach "
            f"({type(error).__name__}: {error}). Give a local file, pretrained_backbone='/path/to/model.safetensors' "
            f"or --backbone-weights (it is published as huggingface.co/timm/{name}); or start from random weights with "
            "pretrained_backbone=False or --no-pretrained-backbone."
        ) from error
    added = _project_first_shortcut(backbone) if resnet else ()
    if pretrained is False:
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    elif pretrained is not True:
        _load_file(backbone, name, Path(pretrained), optional=added)
    if freeze_norms:
        backbone = freeze_batch_norm_2d(backbone)
    if freeze_stem:
        for part in RESNET_STEM if resnet else ("stem",):
            backbone.get_submodule(part).requires_grad_(False)
    return backbone


def _project_first_shortcut(resnet: nn.Module) -> Sequence[str]:
    """Give the first stage's first block the projection that ResNet-vd has there, where timm left it out.

    Returns:
        The names of the tensors that timm's network does not have.
    """
    from timm.models.resnet import downsample_avg

    block = resnet.get_submodule("layer1.0")
    if block.downsample is not None:
        return ()
    channels = block.get_submodule("conv1").get_parameter("weight").shape[1]
    block.downsample = downsample_avg(channels, channels, kernel_size=1)
    kernel = block.get_submodule("downsample.1").get_parameter("weight")
    with torch.no_grad():
        kernel.copy_(torch.eye(channels)[:, :, None, None])
    return [key for key in resnet.state_dict() if key.startswith("layer1.0.downsample.")]


def _load_file(backbone: nn.Module, name: str, path: Path, optional: Sequence[str]) -> None:
    # timm's extractor flattens stages.0 to stages_0; classifiers are of no use here.
    given = {re.sub(r"^stages\.(\d+)", r"stages_\1", key): value for key, value in read_tensors(path).items()}
    wanted = backbone.state_dict()
    authors = {key: reference_key(f"backbone.{key}").removeprefix("backbone.") for key in wanted}
    if sum(key in given for key in authors.values()) > sum(key in given for key in wanted):
        given = {key: given[authors[key]] for key in wanted if authors[key] in given}
    if not any(key in given for key in optional):
        wanted = {key: value for key, value in wanted.items() if key not in optional}
    missing = [key for key in wanted if key not in given and not key.endswith("num_batches_tracked")]
    misshapen = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    if missing or misshapen:
        raise WeightsError(
            f"{path} does not hold the weights of {name!r}: {len(missing)} tensors are missing (first: {missing[:3]}), "
            f"{len(misshapen)} have another shape (first: {misshapen[:3]})."
        )
    backbone.load_state_dict({key: value for key, value in given.items() if key in wanted}, strict=False)
