"""Dense features of a vision model of transformers."""

from __future__ import annotations

import fnmatch
import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill.errors import InputError
from vfmdistill.teachers.positions import ANTIALIASED, BICUBIC, CORNERS, OFFSET, PositionRule
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.value_path import value_path

# How the authors resample positions: the first pair of patterns that fits the kind of model and its name decides. The
# sources are those of `positions.RULES`; whatever is not listed does as transformers does.
RULES: tuple[tuple[str, str, PositionRule], ...] = (
    ("dinov2", "*", OFFSET),
    ("dinov2_with_registers", "*", ANTIALIASED),
    ("tipsv2_vision_model", "*", ANTIALIASED),
    ("*clip*_vision_model", "*", ANTIALIASED),
    ("siglip_vision_model", "*", CORNERS),
    ("vit", "*dino*", OFFSET),
    ("vit", "*", CORNERS),
    ("vit_mae", "*", BICUBIC),
    ("deit", "*", BICUBIC),
    ("ijepa", "*", BICUBIC),
)
# Attention in these neither turns nor biases what it sees by where it sees it, so a token can be seen alone.
_WITH_VALUES = ("dinov2*", "tipsv2_vision_model", "*clip*_vision_model", "siglip_vision_model", "vit*", "deit", "ijepa")
_NORMS = ("layernorm", "norm", "post_layernorm", "rms_norm", "vision_model.post_layernorm")
_ATTENTIONS = ("self_attn", "attention")
_NORMS_BEFORE = ("norm1", "layer_norm1", "layernorm_before")


class TransformersFeatures(nn.Module):
    """Map and summary of a vision model of transformers.

    The map of a plain transformer is what a `Readout` says of its blocks, behind its final norm, also where
    transformers norms the pooled token only (CLIP), without class and register tokens. Hierarchical networks give
    their last stage. The summary is the class token behind the norm, else what the model pools.

    Args:
        network: a vision model, as `AutoModel` builds it.
        model_id: its name, which can decide how positions are resampled.
        readout: which features make the map.
        name: the teacher, for messages.

    Raises:
        InputError: the network has no such blocks, or no value path.
    """

    def __init__(self, network: nn.Module, model_id: str, readout: Readout | None = None, name: str = "") -> None:
        super().__init__()
        self.network = network
        model: Any = network
        readout = readout or Readout()
        self._mean = readout.merge == "mean"
        self._value = readout.dense == "value"
        self._kind = str(model.config.model_type)
        self._layers = plain_blocks(network)
        self._blocks: tuple[int, ...] = ()
        if self._layers is not None:
            self._blocks = readout.block_indices(len(self._layers), name)
        elif readout.blocks is not None:
            raise InputError(
                f"teacher {name!r} is hierarchical: its stages differ in size and width, and its map is the last. "
                "blocks= chooses among the blocks of a plain transformer; drop it."
            )
        if self._value and (self._layers is None or not any(fnmatch.fnmatch(self._kind, p) for p in _WITH_VALUES)):
            raise InputError(
                f'teacher {name!r} has no value path: dense="value" needs a plain transformer without rotary or '
                'relative positions, such as CLIP\'s. Take dense="tokens".'
            )
        accepted = inspect.signature(model.forward).parameters
        self._options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in accepted else {}
        _follow_the_authors(network, self._kind, model_id)

    def forward(self, images: Tensor) -> Any:
        """Map normalised images (N, 3, H, W) to the map (N, C, h, w), and to the summary (N, D) where there is one."""
        model: Any = self.network
        options: dict[str, Any] = dict(self._options)
        if self._kind == "vit_mae":  # which drops nothing (its mask_ratio is 0) but shuffles the patches it is given
            cells = (images.shape[-2] // model.config.patch_size) * (images.shape[-1] // model.config.patch_size)
            options["noise"] = torch.arange(cells, device=images.device, dtype=images.dtype).expand(len(images), -1)
        if self._layers is None:
            output = model(images, **options)
            return _last_stage(model, output.last_hidden_state, images), _pooled(output)
        seen: dict[int, tuple[Tensor, Tensor]] = {}
        hooks = [
            self._layers[index].register_forward_hook(partial(_keep, seen, index), with_kwargs=True)
            for index in {*self._blocks, len(self._layers) - 1}
        ]
        try:
            output = model(images, **options)
        finally:
            for hook in hooks:
                hook.remove()
        grid = (images.shape[-2] // model.config.patch_size, images.shape[-1] // model.config.patch_size)
        norm = _final_norm(model)
        if self._value:
            maps = [norm(self._values(seen[self._blocks[0]][0]))]
        else:
            maps = [norm(seen[index][1]) for index in self._blocks]
        maps = [tokens[:, -grid[0] * grid[1] :].mT.reshape(len(images), -1, *grid) for tokens in maps]
        merged = maps[0] if len(maps) == 1 else torch.stack(maps).mean(0) if self._mean else torch.cat(maps, dim=1)
        last = seen[len(self._layers) - 1][1]
        has_class_token = last.shape[1] > grid[0] * grid[1]
        return merged, norm(last[:, 0]) if has_class_token else _pooled(output)

    def _values(self, entering: Tensor) -> Tensor:
        block: Any = self._layers[-1] if self._layers is not None else None
        normed = next(getattr(block, key) for key in _NORMS_BEFORE if hasattr(block, key))(entering)
        attention = next(getattr(block, key) for key in _ATTENTIONS if hasattr(block, key))
        return value_path(lambda token: _first(attention(token)), normed)


def plain_blocks(network: nn.Module) -> nn.ModuleList | None:
    """The blocks of a plain transformer; None for hierarchical networks, whose stages are lists of their own."""
    depth = getattr(network.config, "num_hidden_layers", None)
    if (
        hasattr(network.config, "depths")
        or hasattr(network.config, "hidden_sizes")
        or hasattr(network, "vision_encoder")
    ):
        return None
    lists = (module for module in network.modules() if isinstance(module, nn.ModuleList))
    return next((module for module in lists if len(module) == depth), None)


def _keep(seen: dict[int, tuple[Tensor, Tensor]], index: int, layer: object, args: Any, kwargs: Any, out: Any) -> None:
    seen[index] = (args[0] if args else kwargs["hidden_states"], _first(out))


def _pooled(output: Any) -> Tensor | None:
    pooled: Tensor | None = getattr(output, "pooler_output", None)
    return None if pooled is None else pooled.flatten(1)


def _first(output: Any) -> Tensor:
    tensor: Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _final_norm(model: Any) -> nn.Module:
    modules = dict(model.named_modules())
    norms = [modules[key] for key in _NORMS if key in modules]
    norms = [norm for norm in norms if not isinstance(norm, nn.Identity)]
    # BEiT keeps it in its pooler where it averages its cells.
    pooled = getattr(getattr(model, "pooler", None), "layernorm", None)
    return norms[0] if norms else pooled if pooled is not None else nn.Identity()


def _last_stage(model: Any, hidden: Tensor, images: Tensor) -> Tensor:
    """The last stage as a map: (N, C, h, w) as it is, behind the norm that is kept for the pooled map; or tokens."""
    if hidden.ndim == 4:
        norm = getattr(model, "layernorm", None)
        if isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (hidden.shape[1],):
            hidden = norm(hidden.movedim(1, -1)).movedim(-1, 1)
        return hidden
    stride = stride_of_tokens(model.config)
    grid = (-(-images.shape[-2] // stride), -(-images.shape[-1] // stride))
    return hidden[:, -grid[0] * grid[1] :].mT.reshape(len(hidden), -1, *grid)


def stride_of_tokens(config: Any) -> int:
    """Pixels of the image for one token of the last stage, which has half the resolution of the one before."""
    first: Any = getattr(config, "patch_stride", None) or getattr(config, "patch_size", 4)
    stages: int = len(config.depths)
    stride: int = (first[0] if isinstance(first, list | tuple) else first) * 2 ** (stages - 1)
    return stride


def _follow_the_authors(network: Any, kind: str, model_id: str) -> None:
    fitting = (rule for k, name, rule in RULES if fnmatch.fnmatch(kind, k) and fnmatch.fnmatch(model_id.lower(), name))
    rule = next(fitting, None)
    if rule is None:
        return
    for module in network.modules():
        if not hasattr(module, "interpolate_pos_encoding"):
            continue
        table = getattr(module, "position_embeddings", None)
        table = module.position_embedding if table is None and hasattr(module, "position_embedding") else table
        if table is not None:
            module.interpolate_pos_encoding = partial(_positions, table, rule, network.config)


def _positions(
    table: nn.Embedding | Tensor, rule: PositionRule, config: Any, tokens: Tensor, height: int, width: int
) -> Tensor:
    """The positions (1, prefix + h·w, C) of images of height × width pixels."""
    weight = table.weight[None] if isinstance(table, nn.Embedding) else table
    native = config.image_size // config.patch_size
    prefix, cells = weight.split([weight.shape[1] - native**2, native**2], dim=1)
    cells = cells.unflatten(1, (native, native)).movedim(-1, 1)
    return torch.cat([prefix, rule(cells, (height // config.patch_size, width // config.patch_size)).flatten(2).mT], 1)
