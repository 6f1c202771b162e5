"""Teachers on timm: any of its models that has `forward_intermediates`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill.errors import InputError, WeightsError, unknown_name
from vfmdistill.teachers.catalog import TeacherSpec
from vfmdistill.teachers.files import load_strictly, read_state_dict
from vfmdistill.teachers.hub import hub_weights
from vfmdistill.teachers.key_maps import to_timm_names
from vfmdistill.teachers.packages import packaged_weights

# How timm's ViTs, then its hierarchical transformers, are told to take any size; its CNNs need no telling.
_ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class TimmFeatures(nn.Module):
    """Last map and summary of a timm network.

    The map is the output of the last block behind the network's final norm, whether timm calls that ``norm``, ``neck``
    (SAM) or, in networks that pool by averaging, ``fc_norm``; class and register tokens are dropped. CNNs give their
    last stage. The summary is what the network would hand to its classifier.

    Args:
        network: a timm model without a classifier.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # Hiera's intermediates cannot be normalised: its final norm comes behind the pooling.
        self._norm = type(network).__name__ not in ("Hiera", "HieraDet")
        late_norm = getattr(network, "fc_norm", None)
        early_norm = getattr(network, "norm", None)
        self._late_norm = isinstance(late_norm, nn.LayerNorm) and isinstance(early_norm, nn.Identity)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images (N, 3, H, W) to the map (N, C, h, w) and the summary (N, D)."""
        network: Any = self.network
        final, (feature_map,) = network.forward_intermediates(images, indices=1, norm=self._norm, output_fmt="NCHW")
        if self._late_norm:
            feature_map = network.fc_norm(feature_map.movedim(1, -1)).movedim(-1, 1)
        return feature_map, network.forward_head(final, pre_logits=True)


def load(spec: TeacherSpec, pretrained: bool, weights: Path | None) -> nn.Module:
    """Build a teacher's network on timm.

    Args:
        spec: the teacher.
        pretrained: take the published weights, from the hub's cache, the hub or a package; else random ones.
        weights: a file to take instead, in timm's or in the authors' naming.

    Raises:
        WeightsError: the weights cannot be had, read or fitted.
    """
    # The file comes first: a large network takes long to build and would be thrown away.
    path = weights or (_published_weights(spec) if pretrained else None)
    state = None if path is None else read_state_dict(path)
    # Random weights that are about to be replaced must not move the caller's random numbers.
    with torch.random.fork_rng(devices=[], enabled=state is not None):
        network = _create(spec.model_id)
    if path is not None and state is not None:
        load_strictly(network, to_timm_names(state, network, spec.name), spec.name, path)
    return TimmFeatures(network)


def describe(name: str) -> TeacherSpec:
    """Return the spec of ``timm:MODEL`` from timm's own configuration; nothing is downloaded.

    Raises:
        UnknownNameError: timm has no such model.
        InputError: the model cannot give a map.
    """
    model_id = name.removeprefix("timm:")
    network = _create(model_id, torch.device("meta"))
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
    )


def _create(model_id: str, device: torch.device | None = None) -> Any:
    """Build a timm network with random weights, without a classifier, for images of any size where it can.

    Position embeddings are resampled by timm for each size of the images: bicubic and antialiased for all ViTs.
    """
    import timm

    architecture = model_id.partition(".")[0]
    if not timm.is_model(architecture):
        raise unknown_name("timm model", architecture, timm.list_models(), "timm.list_models() returns all names.")
    network: Any = None
    for option in _ANY_SIZE:
        try:
            with device or contextlib.nullcontext():
                network = timm.create_model(model_id, pretrained=False, num_classes=0, **option)
            if not _takes_one_size(network):
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
    if _takes_one_size(network):
        size = network.patch_embed.img_size
        raise InputError(
            f"timm:{model_id} takes images of {size[0]} × {size[1]} only, a teacher must take any size. "
            "Choose a model with resizable position embeddings, such as dinov2_vitb14."
        )
    return network


def _takes_one_size(network: Any) -> bool:
    return bool(getattr(getattr(network, "patch_embed", None), "strict_img_size", False))


def _published_weights(spec: TeacherSpec) -> Path:
    if spec.package:
        return packaged_weights(spec.package, spec.name)
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(spec.model_id)
    if config is None or not config.hf_hub_id:
        source = getattr(config, "url", None)
        raise WeightsError(
            f"no weights for teacher {spec.name!r}: the hub has none for timm's {spec.model_id!r}. "
            + (f"Download {source} and give it by weights=." if source else "Give a file by weights=.")
        )
    return hub_weights(spec, config.hf_hub_id, config.hf_hub_filename)
