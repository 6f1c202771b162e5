"""Teachers with weights as transformers saves them give the features that transformers' own networks give."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import scipy.ndimage
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfmdistill.teacher import Teacher

transformers = pytest.importorskip("transformers")

Resample = Callable[[Tensor, tuple[int, int]], Tensor]

_VIT = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
_MLP = {"intermediate_size": 192}
_TIMM_VIT = {"embed_dim": 48, "depth": 2, "num_heads": 2}
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 2, 1]}
_TIMM_STAGES = {"dims": (8, 16, 24, 32), "depths": (1, 2, 2, 1)}


def bicubic_with_offset(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """DINOv2's `interpolate_pos_encoding` with interpolate_offset=0.1, which transformers leaves out."""
    scale = [(new + 0.1) / old for new, old in zip(grid, table.shape[-2:], strict=True)]
    return F.interpolate(table, scale_factor=scale, mode="bicubic")


def antialiased(table: Tensor, grid: tuple[int, int]) -> Tensor:
    return F.interpolate(table, grid, mode="bicubic", antialias=True)


def zoomed(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """big_vision's `resample_posemb`."""
    factors = (1, *(new / old for new, old in zip(grid, table.shape[-2:], strict=True)))
    return torch.from_numpy(scipy.ndimage.zoom(table[0].numpy(), factors, order=1))[None]


@dataclass(frozen=True)
class Case:
    """One family, in small.

    Attributes:
        kind: transformers' class is this and ``Model``, its configuration this and ``Config``.
        config: of that class.
        model: timm's name with tag, which decides how positions are resampled.
        options: what makes timm's network as small.
        patch: pixels of a cell.
        native: cells of the grid that the network is built for.
        resample: how its authors bring positions to another grid, where transformers does it in another way.
        others: further grids.
        call: arguments of transformers' forward.
        since: transformers' version that has it, or has it right.
        late_norm: the final norm, where transformers applies it behind its pooling only.
    """

    kind: str
    config: dict[str, Any]
    model: str
    options: dict[str, Any]
    patch: int
    native: tuple[int, int] = (7, 7)
    resample: Resample | None = None
    others: tuple[tuple[int, int], ...] = ((4, 6), (10, 15), (17, 23))
    call: dict[str, Any] = field(default_factory=dict)
    since: str = "4.51"
    late_norm: str | None = None


_INTERPOLATED = {"interpolate_pos_encoding": True}
_PATCH14 = {"image_size": 98, "patch_size": 14}
_PATCH16 = {"image_size": 112, "patch_size": 16}
_AT_14 = {**_TIMM_VIT, "img_size": 98}
_AT_16 = {**_TIMM_VIT, "img_size": 112}
_DINOV3 = {**_VIT, **_MLP, "num_register_tokens": 4, "image_size": 112}
CASES = {
    "dinov2": Case(
        "Dinov2", _VIT | _PATCH14, "vit_small_patch14_dinov2.lvd142m", _AT_14, 14, resample=bicubic_with_offset
    ),
    "dinov2, SwiGLU": Case(
        "Dinov2",
        _VIT | _PATCH14 | {"use_swiglu_ffn": True},
        "vit_giant_patch14_dinov2.lvd142m",
        _AT_14,
        14,
        resample=bicubic_with_offset,
    ),
    "dinov2 with registers": Case(
        "Dinov2WithRegisters", _VIT | _PATCH14, "vit_small_patch14_reg4_dinov2.lvd142m", _AT_14, 14
    ),
    "dinov3": Case(
        "DINOv3ViT",
        _DINOV3 | {"query_bias": False, "value_bias": False},
        "vit_small_patch16_dinov3.lvd1689m",
        _TIMM_VIT,
        16,
        since="4.56",
    ),
    "dinov3 with biases": Case(
        "DINOv3ViT", _DINOV3, "vit_small_patch16_dinov3_qkvb.lvd1689m", _TIMM_VIT, 16, since="4.56"
    ),
    "dinov3, SwiGLU": Case(
        "DINOv3ViT",
        _DINOV3 | {"query_bias": False, "value_bias": False, "use_gated_mlp": True, "hidden_act": "silu"},
        "vit_small_plus_patch16_dinov3.lvd1689m",
        _TIMM_VIT,
        16,
        since="4.56",
    ),
    "clip": Case(
        "CLIPVision",
        _VIT | _MLP | _PATCH16,
        "vit_base_patch16_clip_quickgelu_224.openai",
        _AT_16,
        16,
        resample=antialiased,
        call=_INTERPOLATED,
        late_norm="post_layernorm",
    ),
    "siglip": Case(
        "SiglipVision",
        _VIT | _MLP | _PATCH16,
        "vit_base_patch16_siglip_224.webli",
        _AT_16,
        16,
        resample=zoomed,
        call=_INTERPOLATED,
    ),
    "mae": Case(
        "ViTMAE",
        _VIT | _MLP | _PATCH16 | {"mask_ratio": 0.0},
        "vit_base_patch16_224.mae",
        _AT_16,
        16,
        call=_INTERPOLATED,
    ),
    "vit": Case(
        "ViT",
        _VIT | _MLP | _PATCH16,
        "vit_small_patch16_224.augreg_in21k",
        _AT_16,
        16,
        resample=zoomed,
        call=_INTERPOLATED,
    ),
    "i-jepa": Case(
        "IJepa", _VIT | _MLP | _PATCH14, "vit_huge_patch14_gap_224.in1k_ijepa", _AT_14, 14, call=_INTERPOLATED
    ),
    "beit": Case(
        "Beit",
        _VIT | _MLP | _PATCH16 | {"use_relative_position_bias": True},
        "beit_base_patch16_224.in22k_ft_in22k",
        _AT_16,
        16,
        others=(),
        late_norm="pooler.layernorm",
    ),
    "aimv2": Case(
        "Aimv2Vision",
        _VIT | {"intermediate_size": 128, "image_size": 98, "patch_size": 14},
        "aimv2_large_patch14_224.apple_pt",
        _AT_14 | {"mlp_ratio": 128 / 48},
        14,
        others=(),
        since="4.54",
    ),
    "sam": Case(
        "SamVision",
        _VIT | {"output_channels": 48, "image_size": 112, "mlp_dim": 192, "window_size": 3, "global_attn_indexes": [1]},
        "samvit_base_patch16.sa1b",
        _AT_16 | {"neck_chans": 48, "window_size": 3, "global_attn_indexes": (1,)},
        16,
        others=(),
    ),
    "convnext": Case("ConvNext", _STAGES, "convnext_tiny.fb_in22k", _TIMM_STAGES, 32, late_norm="layernorm"),
    "convnextv2": Case(
        "ConvNextV2", _STAGES, "convnextv2_tiny.fcmae_ft_in1k", _TIMM_STAGES, 32, since="4.52", late_norm="layernorm"
    ),
    "dinov3 convnext": Case("DINOv3ConvNext", _STAGES, "convnext_tiny.dinov3_lvd1689m", _TIMM_STAGES, 32, since="4.56"),
    "hiera": Case(
        "Hiera",
        {"embed_dim": 16, "depths": [1, 2, 2, 1], "num_heads": [1, 2, 4, 8]},
        "hiera_tiny_224.mae",
        {"embed_dim": 16, "stages": (1, 2, 2, 1), "num_heads": 1},
        32,
        others=(),
        late_norm="pooler.layernorm",
    ),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], None]:
    """Make timm build everything with the options that are given."""
    create = timm.create_model

    def make(options: dict[str, Any]) -> None:
        monkeypatch.setattr(timm, "create_model", lambda *args, **given: create(*args, **(options | given)))

    return make


def randomized(case: Case) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{case.kind}Config")(**case.config)
    model = getattr(transformers, f"{case.kind}Model")(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model


def resampled(module: Any, resample: Resample, grid: tuple[int, int]) -> Tensor:
    """The table of one of transformers' modules on another grid, the class token's position left alone."""
    table = module.position_embeddings if hasattr(module, "position_embeddings") else module.position_embedding.weight
    table = table.reshape(1, -1, table.shape[-1])
    side = math.isqrt(table.shape[1])
    first, cells = table.tensor_split([table.shape[1] - side * side], dim=1)
    cells = cells.mT.unflatten(-1, (side, side))
    return torch.cat([first, (cells if (side, side) == grid else resample(cells, grid)).flatten(2).mT], dim=1)


def tokens_of(model: Any, case: Case, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """transformers' last hidden state as a map (N, C, h, w)."""
    call = dict(case.call)
    if case.kind == "ViTMAE":
        call["noise"] = torch.arange(grid[0] * grid[1]).expand(len(images), -1)  # which leaves their order alone
    if case.resample is not None:
        module = next(module for module in model.modules() if hasattr(module, "interpolate_pos_encoding"))
        module.interpolate_pos_encoding = lambda *args: resampled(module, case.resample, grid)
    output = model(images, **call).last_hidden_state
    feature_map: Tensor = output if output.ndim == 4 else output[:, -grid[0] * grid[1] :].mT.unflatten(-1, grid)
    if case.late_norm is not None:
        norms = [module for key, module in model.named_modules() if f".{key}".endswith(f".{case.late_norm}")]
        feature_map = norms[-1](feature_map.movedim(1, -1)).movedim(-1, 1)
    return feature_map


GRIDS = [(name, grid) for name, case in CASES.items() for grid in (case.native, *case.others)]


@pytest.mark.parametrize(("name", "grid"), GRIDS)
def test_as_transformers_saves_them(
    name: str, grid: tuple[int, int], small: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    case = CASES[name]
    pytest.importorskip("transformers", case.since)
    theirs = randomized(case)
    theirs.save_pretrained(tmp_path)
    small(case.options)
    teacher = Teacher(f"timm:{case.model}", weights=tmp_path / "model.safetensors")
    images = torch.rand(2, 3, *(case.patch * cells for cells in grid))
    given = (images - torch.tensor(teacher.spec.mean).view(3, 1, 1)) / torch.tensor(teacher.spec.std).view(3, 1, 1)
    features = teacher(images, grid)
    expected = tokens_of(theirs, case, given, grid)
    torch.testing.assert_close(features.map, expected, rtol=0, atol=1e-4)
