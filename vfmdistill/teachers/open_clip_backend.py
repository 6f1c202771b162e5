"""Teachers on open_clip: the image towers of its models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vfmdistill.errors import InputError, WeightsError, unknown_name
from vfmdistill.teachers.files import load_strictly, read_state_dict
from vfmdistill.teachers.hub import hub_weights
from vfmdistill.teachers.key_maps_open_clip import to_open_clip_names
from vfmdistill.teachers.open_clip_features import OpenClipFeatures
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.spec import TeacherSpec

_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def load(spec: TeacherSpec, pretrained: bool, weights: Path | None, readout: Readout | None = None) -> nn.Module:
    """Build the image tower of a model of open_clip.

    Towers that open_clip takes from timm are built on timm, with which they share everything else.

    Args:
        spec: the teacher; its ``model_id`` is MODEL/TAG.
        pretrained: take the published weights, from the hub's cache or the hub; else random ones.
        weights: a file to take instead, in the naming of open_clip, OpenAI, timm or transformers.
        readout: which features make the map; by default the last block's tokens.

    Raises:
        WeightsError: the weights cannot be had, read or fitted.
        InputError: the network has no such features.
    """
    # The file comes first: open_clip takes seconds to import, and a network without weights would be thrown away.
    path = weights or (_published_weights(spec) if pretrained else None)
    model, tag = _parts(spec.model_id)
    config = _config(model)
    on_timm = config["vision_cfg"].get("timm_model_name")
    if on_timm:
        from vfmdistill.teachers import timm_backend

        return timm_backend.load(spec.model_copy(update={"model_id": on_timm}), False, path, readout)
    state = None if path is None else read_state_dict(path)
    # Random weights that are about to be replaced must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[], enabled=state is not None):
        tower = _tower(config, model, tag)
    if path is not None and state is not None:
        load_strictly(tower, to_open_clip_names(state, tower), spec.name, path)
    return OpenClipFeatures(tower, readout, spec.name)


def describe(name: str) -> TeacherSpec:
    """Return the spec of ``open_clip:MODEL/TAG`` from open_clip's own configuration; nothing is downloaded.

    Raises:
        UnknownNameError: open_clip has no such model or tag.
        InputError: the model cannot give a map.
    """
    model_id = name.removeprefix("open_clip:")
    model, tag = _parts(model_id)
    config, published = _config(model), _pretrained_config(model, tag)
    on_timm = config["vision_cfg"].get("timm_model_name")
    if on_timm:
        from vfmdistill.teachers import timm_backend

        of_timm = timm_backend.describe(f"timm:{on_timm}")
        patch_size, embed_dim, params = of_timm.patch_size, of_timm.embed_dim, of_timm.params
    else:
        with torch.device("meta"):
            tower = _tower(config, model, tag)
        patch_size, embed_dim = tower.patch_size[0], tower.conv1.out_channels
        params = sum(parameter.numel() for parameter in tower.parameters())
    return TeacherSpec(
        name=name,
        family=model.split("-")[0].lower(),
        backend="open_clip",
        model_id=model_id,
        patch_size=patch_size,
        embed_dim=embed_dim,
        mean=published["mean"],
        std=published["std"],
        params=params,
        dense="value" if _sees_by_class_token(config["vision_cfg"]) else "tokens",
    )


def _parts(model_id: str) -> tuple[str, str]:
    model, _, tag = model_id.partition("/")
    if not model or not tag:
        raise InputError(f"open_clip:{model_id} names no weights; expected open_clip:MODEL/TAG, as ViT-B-16/dfn2b.")
    return model, tag


def _config(model: str) -> dict[str, Any]:
    import open_clip

    config: dict[str, Any] | None = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if config is None:
        hint = "open_clip.list_models() returns all names."
        raise unknown_name("open_clip model", model, open_clip.list_models(), hint)
    if isinstance(config["vision_cfg"].get("layers"), list):
        raise InputError(
            f"open_clip:{model} sees with a ResNet, whose only dense features are in front of its attention pooling. "
            "Take timm's copy: timm:resnet50_clip.openai and its siblings."
        )
    return config


def _pretrained_config(model: str, tag: str) -> dict[str, Any]:
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    published: dict[str, Any] = get_pretrained_cfg(model, tag)
    if not published:
        known = [f"{model}/{each}" for each in list_pretrained_tags_by_model(model)]
        raise unknown_name("open_clip weights", f"{model}/{tag}", known, "open_clip.list_pretrained() returns all.")
    return published


def _tower(config: dict[str, Any], model: str, tag: str) -> Any:
    """A tower with random weights, without its projection to the space that it shares with text."""
    from open_clip.model import _build_vision_tower

    # Some weights were trained with "quick" GELU although their model's name does not say so.
    quick = bool(config.get("quick_gelu") or _pretrained_config(model, tag).get("quick_gelu") or tag == "openai")
    tower: Any = _build_vision_tower(config["embed_dim"], config["vision_cfg"], quick)
    tower.proj = None
    return tower


def _sees_by_class_token(vision: dict[str, Any]) -> bool:
    if vision.get("timm_model_name"):
        return vision.get("timm_pool") == "token" and "enormous" not in vision["timm_model_name"]
    return vision.get("pool_type", "tok") == "tok" and not vision.get("attentional_pool")


def _published_weights(spec: TeacherSpec) -> Path:
    if spec.repository:
        return hub_weights(spec, spec.repository, _FILES)
    published = _pretrained_config(*_parts(spec.model_id))
    repository, _, filename = str(published.get("hf_hub") or "").rpartition("/")
    if not repository:
        raise WeightsError(
            f"no weights for teacher {spec.name!r}: the hub has none for open_clip's {spec.model_id!r}. "
            f"Download {published.get('url') or 'them'} and give the file by weights=."
        )
    return hub_weights(spec, repository, (filename,) if filename else _FILES)
