"""Teachers on transformers: its vision models, and the image towers of its models for images and text."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill.errors import InputError, WeightsError
from vfmdistill.teachers.files import read_state_dict
from vfmdistill.teachers.hub import hub_weights
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.spec import Rgb, TeacherSpec
from vfmdistill.teachers.transformers_features import TransformersFeatures, plain_blocks, stride_of_tokens
from vfmdistill.teachers.transformers_models import build, filled

# Repositories that give out their files after a licence was accepted, with that licence.
GATED = {"facebook/dinov3-*": "dinov3-license", "facebook/sam3*": "sam-license"}

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
_CONFIG, _PROCESSORS = "config.json", ("preprocessor_config.json", "processor_config.json")
_CLASS_TOKEN = ("clip_vision_model", "chinese_clip_vision_model")


def load(spec: TeacherSpec, pretrained: bool, weights: Path | None, readout: Readout | None = None) -> nn.Module:
    """Build a vision model of transformers.

    Args:
        spec: the teacher; its ``model_id`` is a repository of the hub or a folder.
        pretrained: take the published weights, from the folder, the hub's cache or the hub; else random ones.
        weights: a file to take instead, in transformers' naming.
        readout: which features make the map; by default the last block's tokens.

    Raises:
        WeightsError: configuration or weights cannot be had, read or fitted.
        InputError: the network has no such features.
    """
    config = _config(spec)
    path = weights or (_weights(spec) if pretrained else None)
    state = None if path is None else read_state_dict(path)
    # Random weights that are about to be replaced must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[], enabled=state is not None):
        network = build(config, spec.name)
        if path is not None and state is not None:
            network = filled(network, state, spec.name, path)
    return TransformersFeatures(network, spec.model_id, readout, spec.name)


def describe(name: str) -> TeacherSpec:
    """Return the spec of ``hf:OWNER/NAME`` or ``hf:FOLDER`` from its configuration; no weights are downloaded.

    Raises:
        WeightsError: its configuration is not on this machine and cannot be had.
        InputError: the model gives no map of images of any size, or does not say how its images are normalised.
    """
    model_id = name.removeprefix("hf:")
    license = next((licence for pattern, licence in GATED.items() if fnmatch.fnmatch(model_id, pattern)), None)
    spec = TeacherSpec(
        name=name,
        family=model_id.rstrip("/").split("/")[-1].replace("_", "-").split("-")[0].lower(),
        backend="transformers",
        model_id=model_id,
        patch_size=1,
        embed_dim=1,
        license=license or "unknown",
        gated=license is not None,
    )
    config = _config(spec)
    mean, std = _normalisation(spec)
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                network = build(config, name)
        except (RuntimeError, NotImplementedError):  # some of transformers' older networks read tensors to be built
            network = build(config, name)
    patch_size = _patch_size(network, config, name)
    feature_map = _probed(network.eval(), model_id, name, (5 * patch_size, 3 * patch_size))
    return spec.model_copy(
        update={
            "patch_size": patch_size,
            "embed_dim": feature_map.shape[1],
            "mean": mean,
            "std": std,
            "params": sum(parameter.numel() for parameter in network.parameters()),
            "dense": "value" if config.model_type in _CLASS_TOKEN else "tokens",
        }
    )


def _file(spec: TeacherSpec, files: tuple[str, ...]) -> Path:
    """The first of some files of a folder or a repository."""
    folder = Path(spec.model_id).expanduser()
    if not folder.is_dir():
        if spec.model_id.count("/") != 1 or spec.model_id.startswith((".", "~", "/")):
            raise InputError(f"{spec.name} is neither a folder nor OWNER/NAME of a repository on the hub.")
        return hub_weights(spec, spec.model_id, files)
    for file in files:
        if (folder / file).is_file():
            return folder / file
    raise WeightsError(f"folder {spec.model_id!r} has no {' or '.join(files)}; expected what save_pretrained writes.")


def _weights(spec: TeacherSpec) -> Path:
    path = _file(spec, _WEIGHTS)
    if path.name.endswith(".index.json") and not Path(spec.model_id).expanduser().is_dir():
        for shard in sorted(set(json.loads(path.read_text())["weight_map"].values())):
            hub_weights(spec, spec.model_id, str(shard))
    return path


def _config(spec: TeacherSpec) -> Any:
    """The configuration of the part that sees."""
    path = _file(spec, (_CONFIG,))
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise InputError(
            f'{spec.name} needs transformers, which is not installed. Run: pip install "vfmdistill[transformers]".'
        ) from error
    try:
        config = AutoConfig.from_pretrained(str(path.parent), local_files_only=True)
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"{spec.name} cannot be built by this version of transformers: {error}") from error
    config = getattr(config, "vision_config", config)
    if config.model_type == "vit_mae":
        config.mask_ratio = 0.0
    return config


def _normalisation(spec: TeacherSpec) -> tuple[Rgb, Rgb]:
    path = _file(spec, _PROCESSORS)
    settings = json.loads(path.read_text())
    settings = settings.get("image_processor", settings)
    if settings.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    try:
        (r, g, b), (sr, sg, sb) = settings["image_mean"], settings["image_std"]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not say how images are normalised: no image_mean and image_std.") from error
    return (r, g, b), (sr, sg, sb)


def _patch_size(network: Any, config: Any, name: str) -> int:
    if plain_blocks(network) is None and hasattr(config, "depths"):
        return stride_of_tokens(config)
    if isinstance(getattr(config, "patch_size", None), int):
        return int(config.patch_size)
    raise InputError(
        f"{name} is a {type(network).__name__}, which does not see images in square patches; "
        "expected a vision transformer or a CNN of transformers, or a model with such a vision_config."
    )


def _probed(network: nn.Module, model_id: str, name: str, size: tuple[int, int]) -> Tensor:
    """The map of an image, on the meta device if the network is."""
    device = next(network.parameters()).device
    try:
        with torch.no_grad(), device:
            feature_map = TransformersFeatures(network, model_id, None, name)(torch.zeros(1, 3, *size))[0]
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{name} takes no images of {size[0]} × {size[1]} pixels, a teacher must take any size: {error}. "
            "Take timm's or open_clip's copy of it, if there is one: list_teachers()."
        ) from error
    assert isinstance(feature_map, Tensor)
    return feature_map
