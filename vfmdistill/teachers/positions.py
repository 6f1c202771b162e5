"""Position embeddings on a grid that a network was not trained on: what each model's authors do, whoever runs it."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PositionRule:
    """How a table of learned positions is brought to another grid.

    Attributes:
        mode: the kernel.
        antialias: whether the kernel widens where the grid shrinks.
        align_corners: whether the centres of the corner cells stay where they are, instead of the outer edges.
        offset: cells that are added to the new grid where the distance between samples is computed, and there alone.
    """

    mode: Literal["bicubic", "bilinear"] = "bicubic"
    antialias: bool = False
    align_corners: bool = False
    offset: float = 0.0

    def __call__(self, table: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return a table (1, C, h, w) on another grid, computed in float32 at least; as it is if it is on that grid."""
        if tuple(table.shape[-2:]) == tuple(grid):
            return table
        precise = table.to(torch.promote_types(table.dtype, torch.float32))
        size: dict[str, Any] = {"size": tuple(grid)}
        if self.offset:
            old = table.shape[-2:]
            size = {"scale_factor": [(grid[0] + self.offset) / old[0], (grid[1] + self.offset) / old[1]]}
        resampled = F.interpolate(
            precise, mode=self.mode, antialias=self.antialias, align_corners=self.align_corners, **size
        )
        return resampled.to(table.dtype)


BICUBIC = PositionRule()
ANTIALIASED = PositionRule(antialias=True)
OFFSET = PositionRule(offset=0.1)
BILINEAR = PositionRule(mode="bilinear")
SMOOTH = PositionRule(mode="bilinear", antialias=True)
CORNERS = PositionRule(mode="bilinear", align_corners=True)

# The first pattern that fits timm's name with tag decides. Whoever is not listed gives no other grid a meaning, as
# OpenAI with CLIP and Apple with AIMv2, or does what OpenCLIP does (`resize_pos_embed`), and timm.
RULES: tuple[tuple[str, PositionRule], ...] = (
    # DINOv2's hubconf: with registers interpolate_antialias=True and interpolate_offset=0, without False and 0.1.
    ("vit_*_reg4_dinov2*", ANTIALIASED),
    ("vit_*_dinov2*", OFFSET),
    # DINO's `interpolate_pos_encoding`, where the offset comes from.
    ("vit_*.dino", OFFSET),
    # Perception Encoder's `_sample_abs_posemb`.
    ("vit_pe_*", BILINEAR),
    # TIPS: bilinear `jax.image.resize`, which antialiases; in PyTorch interpolate_antialias=True, interpolate_offset=0.
    ("vit_*_tipsv2*", SMOOTH),
    # SigLIP and Google's ViTs: big_vision's `resample_posemb`, a zoom of order 1 that keeps the corners.
    ("vit_*_siglip_*", CORNERS),
    ("vit_*.augreg*", CORNERS),
    ("vit_*.orig_*", CORNERS),
    # `interpolate_pos_embed` of MAE, DeiT, BEiT and what grew out of them: EVA, BEiT-3.
    ("vit_*.mae", BICUBIC),
    ("deit*", BICUBIC),
    ("beit*", BICUBIC),
    ("eva*", BICUBIC),
    # I-JEPA's `interpolate_pos_encoding`.
    ("vit_*ijepa", BICUBIC),
    # SAM's encoder is ViTDet's, which has `get_abs_pos`.
    ("samvit_*", BICUBIC),
)


def rule_for(model: str) -> PositionRule:
    """Return the rule for a model of timm, named ``ARCHITECTURE.TAG``."""
    return next((rule for pattern, rule in RULES if fnmatch.fnmatch(model, pattern)), ANTIALIASED)


def follow_the_authors(network: nn.Module, rule: PositionRule) -> None:
    """Make a timm ViT resample its positions by a rule, where timm's own is another one.

    Networks that have no table of learned positions, or that take one size of images only, are left as they are.
    """
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    vit: Any = network
    if isinstance(network, VisionTransformerSAM):
        # Its forward adds the table without a method in between: the table goes to where the patches come from.
        if vit.pos_embed is not None and rule != ANTIALIASED:
            vit.patch_embed.register_parameter("positions", vit.pos_embed)
            vit.patch_embed.register_forward_hook(partial(_added_to_patches, rule))
            vit.pos_embed = None
    elif isinstance(network, Eva):
        # Perception Encoder counts cells, whatever the grid (`Rope2D.update_grid`); timm stretches to the trained one.
        if rule == BILINEAR and vit.rope is not None:
            vit.rope.ref_feat_shape = None
        if _resamples(vit, Eva, rule):
            vit._pos_embed = partial(_eva_positions, vit, rule)
    elif isinstance(network, VisionTransformer) and _resamples(vit, VisionTransformer, rule):
        vit._pos_embed = partial(_vit_positions, vit, rule)


def _resamples(network: Any, kind: type[nn.Module], rule: PositionRule) -> bool:
    owner: Any = kind
    plain = type(network)._pos_embed is owner._pos_embed
    return plain and bool(network.dynamic_img_size) and network.pos_embed is not None and rule != ANTIALIASED


def _added_to_patches(rule: PositionRule, module: Any, args: object, patches: Tensor) -> Tensor:
    """SAM's patches (N, h, w, C) with its table (1, H, W, C)."""
    table = rule(module.positions.movedim(-1, 1), (patches.shape[1], patches.shape[2]))
    return patches + table.movedim(1, -1)


def _vit_positions(network: Any, rule: PositionRule, patches: Tensor) -> Tensor:
    """Patches (N, h, w, C) to tokens (N, prefix + h·w, C) with their positions."""
    grid = (patches.shape[1], patches.shape[2])
    own_prefix = 0 if network.no_embed_class else network.num_prefix_tokens
    first, table = network.pos_embed.split([own_prefix, network.pos_embed.shape[1] - own_prefix], dim=1)
    table = table.unflatten(1, tuple(network.patch_embed.grid_size)).movedim(-1, 1)
    positions = rule(table, grid).flatten(2).mT
    tokens = patches.flatten(1, 2)
    prefix = [
        token.expand(len(tokens), -1, -1) for token in (network.cls_token, network.reg_token) if token is not None
    ]
    if own_prefix:
        positioned = torch.cat([*prefix, tokens], dim=1) + torch.cat([first, positions], dim=1)
    else:
        positioned = torch.cat([*prefix, tokens + positions], dim=1)
    dropped: Tensor = network.pos_drop(positioned)
    return dropped


def _eva_positions(network: Any, rule: PositionRule, patches: Tensor) -> tuple[Tensor, Tensor | None]:
    """As a ViT's, together with the rotary positions of the grid, if the network has them."""
    grid = [patches.shape[1], patches.shape[2]]
    rotary = None if network.rope is None else network.rope.get_embed(shape=grid)
    return _vit_positions(network, rule, patches), rotary
