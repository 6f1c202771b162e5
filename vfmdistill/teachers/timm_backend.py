"""Teachers on timm: any of its models that has `forward_intermediates`."""

from __future__ import annotations

import contextlib
import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vfmdistill.errors import InputError, WeightsError, unknown_name
from vfmdistill.teachers.catalog import TeacherSpec
from vfmdistill.teachers.files import load_strictly, read_state_dict
from vfmdistill.teachers.hub import hub_weights
from vfmdistill.teachers.key_maps import to_timm_names
from vfmdistill.teachers.packages import packaged_weights
from vfmdistill.teachers.positions import follow_the_authors, rule_for
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.sized_copies import SizedCopies, at_size
from vfmdistill.teachers.timm_features import TimmFeatures

# How timm's ViTs, then its hierarchical transformers, are told to take any size; its CNNs need no telling.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})
# SigLIP was trained in JAX, whose GELU is the approximation by tanh; some of timm's variants compute the exact one.
_AS_TRAINED: dict[str, dict[str, Any]] = {"vit_*_siglip*": {"act_layer": "gelu_tanh"}}


def load(spec: TeacherSpec, pretrained: bool, weights: Path | None, readout: Readout | None = None) -> nn.Module:
    """Build a teacher's network on timm.

    Args:
        spec: the teacher.
        pretrained: take the published weights, from the hub's cache, the hub or a package; else random ones.
        weights: a file to take instead, in timm's or in the authors' naming.
        readout: which features make the map; by default the last block's tokens.

    Raises:
        WeightsError: the weights cannot be had, read or fitted.
        InputError: the network has no such features.
    """
    # The file comes first: a large network takes long to build and would be thrown away.
    path = weights or (_published_weights(spec) if pretrained else None)
    state = None if path is None else read_state_dict(path)
    # Random weights that are about to be replaced must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[], enabled=state is not None):
        network = _create(spec.model_id)
    if path is not None and state is not None:
        load_strictly(network, to_timm_names(state, network, spec.name), spec.name, path)
    follow_the_authors(network, rule_for(_tagged(network)))
    return TimmFeatures(network, readout, spec.name, _copies(spec.model_id))


def describe(name: str) -> TeacherSpec:
    """Return the spec of ``timm:MODEL`` from timm's own configuration; nothing is downloaded.

    Raises:
        UnknownNameError: timm has no such model.
        InputError: the model cannot give a map.
    """
    model_id = name.removeprefix("timm:")
    network = _create(model_id, torch.device("meta"))
    _copies(model_id)
    last, config = network.feature_info[-1], network.pretrained_cfg
    return TeacherSpec(
        name=name,
        family=str(config.get("architecture") or model_id).split("_")[0],
        backend="timm",
        model_id=model_id,
        patch_size=last["reduction"],
        embed_dim=last.get("num_chs_norm", last["num_chs"]),
        mean=config["mean"],
        std=config["std"],
        params=sum(parameter.numel() for parameter in network.parameters()),
        license=config.get("license") or "unknown",
        repository=None if config.get("hf_hub_filename") else config.get("hf_hub_id"),
    )


def _create(model_id: str, device: torch.device | None = None) -> Any:
    """Build a timm network with random weights, without a classifier, for images of any size where it can."""
    import timm

    architecture = model_id.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown_name("timm model", architecture, timm.list_models(), _newer(timm.__version__))
    as_trained = next((own for pattern, own in _AS_TRAINED.items() if fnmatch.fnmatch(architecture, pattern)), {})
    network: Any = None
    for option in _ANY_SIZE:
        try:
            with device or contextlib.nullcontext():
                network = timm.create_model(model_id, pretrained=False, num_classes=0, **option, **as_trained)
            if not _is_strict(network):
                break
        except TypeError as error:
            if not any(name in str(error) for name in option):
                raise
        except RuntimeError as error:  # how timm reports an unknown tag
            raise InputError(f"timm cannot build {model_id!r}: {error}") from error
    if not hasattr(network, "forward_intermediates"):
        raise InputError(
            f"timm:{model_id} has no forward_intermediates and so gives no feature map. "
            "Choose another timm model, or give Teacher a module of your own that returns (N, C, h, w)."
        )
    return network


def _newer(version: str) -> str:
    return (
        f"timm.list_models() returns all names; this is timm {version}, a newer one may have it: pip install -U timm."
    )


def _copies(model_id: str) -> SizedCopies | None:
    """Where a network that is built for one size of images gets its copies for others; None for other networks.

    Raises:
        InputError: it cannot have any.
    """
    with torch.random.fork_rng(devices=[]):
        probe = _create(model_id, torch.device("meta")).eval()
        stride, native = probe.feature_info[-1]["reduction"], probe.pretrained_cfg["input_size"][1]
        size = (5 * stride, 3 * stride)
        if _takes(probe, size):
            return None
        with torch.device("meta"), contextlib.suppress(InputError):
            if _takes(at_size(model_id, probe, size).eval(), size):
                return SizedCopies(partial(at_size, model_id))
        if _takes(probe, (2 * native, native)):
            return None  # it refuses certain sizes only, as the teacher says when it meets one
    raise InputError(
        f"timm:{model_id} takes images of {native} × {native} only, a teacher must take any size. "
        "Choose a model with resizable position embeddings, such as dinov2_vitb14."
    )


def _takes(network: Any, size: tuple[int, int]) -> bool:
    """Whether a network on the meta device can be run on images of a size."""
    try:
        with torch.device("meta"), torch.no_grad():
            network.forward_intermediates(torch.empty(1, 3, *size), indices=1)
    except (AssertionError, RuntimeError):
        return False
    return True


def _is_strict(network: Any) -> bool:
    return bool(getattr(getattr(network, "patch_embed", None), "strict_img_size", False))


def _tagged(network: Any) -> str:
    """The name with the tag of the weights, also where the user gave none."""
    config = network.pretrained_cfg
    return f"{config.get('architecture') or ''}.{config.get('tag') or ''}"


def _published_weights(spec: TeacherSpec) -> Path:
    if spec.package:
        return packaged_weights(spec.package, spec.name, spec.license)
    if spec.repository:
        return hub_weights(spec, spec.repository)
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(spec.model_id)
    if config is None or not config.hf_hub_id:
        source = getattr(config, "url", None)
        raise WeightsError(
            f"no weights for teacher {spec.name!r}: the hub has none for timm's {spec.model_id!r}. "
            + (f"Download {source} and give it by weights=." if source else "Give a file by weights=.")
        )
    return hub_weights(spec, config.hf_hub_id, config.hf_hub_filename)
