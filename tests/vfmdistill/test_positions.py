"""Positions on other grids, against independent implementations of what the models' authors do."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vfmdistill.teachers.positions import (
    ANTIALIASED,
    BICUBIC,
    BILINEAR,
    CORNERS,
    OFFSET,
    SMOOTH,
    PositionRule,
    follow_the_authors,
    rule_for,
)
from vfmdistill.teachers.timm_features import TimmFeatures

GRIDS = [(20, 20), (10, 15), (17, 23)]


def tiny(name: str, **options: Any) -> Any:
    """A network of timm's in small, with random weights that are large enough for positions to matter."""
    size = {"embed_dim": 48, "depth": 2, "num_heads": 2} | options
    network = timm.create_model(name, num_classes=0, **size).eval().requires_grad_(False)
    for parameter in network.parameters():
        if parameter.ndim > 2:
            nn.init.normal_(parameter, std=0.3)
    return network


@pytest.mark.parametrize(
    ("model", "rule"),
    [
        ("vit_small_patch14_dinov2.lvd142m", OFFSET),
        ("vit_small_patch14_reg4_dinov2.lvd142m", ANTIALIASED),
        ("vit_base_patch8_224.dino", OFFSET),
        ("vit_pe_spatial_large_patch14_448.fb", BILINEAR),
        ("vit_so400m_patch14_reg1_tipsv2.webli", SMOOTH),
        ("vit_so400m_patch14_siglip_378.v2_webli", CORNERS),
        ("vit_base_patch16_224.augreg2_in21k_ft_in1k", CORNERS),
        ("vit_base_patch16_224.mae", BICUBIC),
        ("vit_huge_patch14_gap_224.in1k_ijepa", BICUBIC),
        ("deit3_base_patch16_224.fb_in1k", BICUBIC),
        ("beit3_base_patch16_224.in22k_ft_in1k", BICUBIC),
        ("eva02_base_patch16_clip_224.merged2b", BICUBIC),
        ("samvit_base_patch16.sa1b", BICUBIC),
        ("vit_base_patch16_clip_quickgelu_224.openai", ANTIALIASED),
        ("aimv2_large_patch14_224.apple_pt", ANTIALIASED),
    ],
)
def test_whose_rule_is_followed(model: str, rule: PositionRule) -> None:
    assert rule_for(model) == rule


def _by_hand(table: np.ndarray, length: int, scale: float) -> np.ndarray:
    """Cubic convolution along the first axis with a = −0.75 (Keys 1981), borders repeated, as PyTorch has it."""
    old = len(table)
    rows = []
    for new in range(length):
        source = (new + 0.5) / scale - 0.5
        first = int(np.floor(source)) - 1
        distances = np.abs(source - np.arange(first, first + 4))
        near = 1.25 * distances**3 - 2.25 * distances**2 + 1
        far = -0.75 * (distances**3 - 5 * distances**2 + 8 * distances - 4)
        weights = np.where(distances <= 1, near, far)
        rows.append(np.tensordot(weights, table[np.clip(np.arange(first, first + 4), 0, old - 1)], axes=1))
    return np.stack(rows)


@pytest.mark.parametrize("grid", [*GRIDS, (37, 36)])
@pytest.mark.parametrize("rule", [OFFSET, BICUBIC])
def test_bicubic_with_and_without_the_offset(rule: PositionRule, grid: tuple[int, int]) -> None:
    table = torch.randn(1, 3, 37, 37, dtype=torch.float64)
    values = table[0].permute(1, 2, 0).numpy()
    for length in grid:
        values = _by_hand(values, length, (length + rule.offset) / 37).swapaxes(0, 1)
    torch.testing.assert_close(rule(table, grid)[0].permute(1, 2, 0), torch.from_numpy(values))


@pytest.mark.parametrize("grid", GRIDS)
def test_google_zooms_with_the_corners_in_place(grid: tuple[int, int]) -> None:
    table = torch.randn(1, 4, 14, 14, dtype=torch.float64)
    zoomed = scipy.ndimage.zoom(table[0].numpy(), (1, grid[0] / 14, grid[1] / 14), order=1)
    torch.testing.assert_close(CORNERS(table, grid)[0], torch.from_numpy(zoomed))


def _triangle(old: int, new: int) -> Tensor:
    """jax.image.resize, "linear" with antialiasing: a triangle as wide as a cell of the coarser grid, normalised."""
    scale = max(old / new, 1.0)
    centres = (torch.arange(new, dtype=torch.float64) + 0.5) * old / new - 0.5
    weights = (1 - (centres[:, None] - torch.arange(old)).abs() / scale).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


@pytest.mark.parametrize("grid", [*GRIDS, (40, 9)])
def test_tips_smooths_as_jax_does(grid: tuple[int, int]) -> None:
    table = torch.randn(1, 4, 32, 32, dtype=torch.float64)
    expected = _triangle(32, grid[0]) @ table @ _triangle(32, grid[1]).T
    torch.testing.assert_close(SMOOTH(table, grid), expected)


def test_the_trained_grid_is_left_alone() -> None:
    table = torch.randn(1, 4, 7, 7)
    assert all(rule(table, (7, 7)) is table for rule in (OFFSET, BICUBIC, CORNERS, BILINEAR, SMOOTH, ANTIALIASED))


def test_half_precision_is_resampled_in_single() -> None:
    table = torch.randn(1, 4, 7, 7).bfloat16()
    assert torch.equal(OFFSET(table, (5, 9)), OFFSET(table.float(), (5, 9)).bfloat16())


def _from_transformers(theirs: Any, registers: bool, folder: Path) -> dict[str, Tensor]:
    """The state of transformers' DINOv2, as it is saved, under timm's names."""
    theirs.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    embeddings = {
        key.removeprefix("embeddings."): value for key, value in state.items() if key.startswith("embeddings.")
    }
    positions = embeddings["position_embeddings"]
    mine = {
        "cls_token": embeddings["cls_token"],
        "pos_embed": positions,
        "patch_embed.proj.weight": embeddings["patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": embeddings["patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    if registers:
        mine["cls_token"] = embeddings["cls_token"] + positions[:, :1]
        mine["pos_embed"] = positions[:, 1:]
        mine["reg_token"] = embeddings["register_tokens"]
    for block in range(2):
        here = f"encoder.layer.{block}."
        for leaf in ("weight", "bias"):
            triple = [state[f"{here}attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")]
            mine[f"blocks.{block}.attn.qkv.{leaf}"] = torch.cat(triple)
            mine[f"blocks.{block}.attn.proj.{leaf}"] = state[f"{here}attention.output.dense.{leaf}"]
            for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                mine[f"blocks.{block}.{same}.{leaf}"] = state[f"{here}{same}.{leaf}"]
        for number in (1, 2):
            mine[f"blocks.{block}.ls{number}.gamma"] = state[f"{here}layer_scale{number}.lambda1"]
    return mine


@pytest.mark.parametrize("grid", [(7, 7), *GRIDS])
@pytest.mark.parametrize("registers", [False, True])
def test_dinov2_equals_transformers(grid: tuple[int, int], registers: bool, tmp_path: Path) -> None:
    """transformers has the antialiasing right, and no offset: without ours, the two are the same network."""
    transformers = pytest.importorskip("transformers")
    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 98, "patch_size": 14}
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**sizes)).eval()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    mine = tiny(name, img_size=98, dynamic_img_size=True)
    mine.load_state_dict(_from_transformers(theirs, registers, tmp_path))
    follow_the_authors(mine, ANTIALIASED if registers else BICUBIC)
    images = torch.randn(2, 3, 14 * grid[0], 14 * grid[1])
    with torch.no_grad():
        feature_map, summary = TimmFeatures(mine)(images)
        tokens = theirs(images).last_hidden_state
    expected = tokens[:, -grid[0] * grid[1] :].mT.unflatten(-1, grid)
    torch.testing.assert_close(feature_map, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(summary, tokens[:, 0], rtol=0, atol=1e-4)


VITS = [
    ("vit_small_patch14_dinov2", {"img_size": 98, "dynamic_img_size": True}),
    ("vit_base_patch16_siglip_224", {"dynamic_img_size": True}),
    ("eva02_tiny_patch14_224", {"dynamic_img_size": True}),
    ("vit_pe_core_base_patch16_224", {"dynamic_img_size": True}),
    ("samvit_base_patch16", {"img_size": 128, "global_attn_indexes": (1,)}),
]


@pytest.mark.parametrize(("name", "options"), VITS)
def test_networks_add_what_the_rule_says(name: str, options: dict[str, Any]) -> None:
    """Given a table that already is on the grid, a network must do nothing to it."""
    network = tiny(name, **options)
    rule = rule_for(f"{name}.tag")
    patch = network.patch_embed.patch_size[0]
    images = torch.randn(2, 3, 6 * patch, 9 * patch)
    ours = copy.deepcopy(network)
    follow_the_authors(ours, rule)

    native = copy.deepcopy(network)
    if "samvit" in name:
        native.pos_embed.data = rule(native.pos_embed.movedim(-1, 1), (6, 9)).movedim(1, -1)
    else:
        first = network.num_prefix_tokens if not network.no_embed_class else 0
        side = network.patch_embed.grid_size
        table = native.pos_embed[:, first:].unflatten(1, side).movedim(-1, 1)
        native.pos_embed.data = torch.cat([native.pos_embed[:, :first], rule(table, (6, 9)).flatten(2).mT], 1)
        native.patch_embed.grid_size = (6, 9)
        if "vit_pe" in name:
            native.rope.ref_feat_shape = None
    for got, expected in zip(TimmFeatures(ours)(images), TimmFeatures(native)(images), strict=True):
        torch.testing.assert_close(got, expected)
    assert not torch.allclose(TimmFeatures(network)(images)[0], TimmFeatures(ours)(images)[0], atol=1e-3)


@pytest.mark.parametrize(("name", "options"), VITS)
def test_it_can_be_copied_and_saved(name: str, options: dict[str, Any]) -> None:
    network = tiny(name, **options)
    follow_the_authors(network, rule_for(f"{name}.tag"))
    features = TimmFeatures(network)
    patch = network.patch_embed.patch_size[0]
    images = torch.randn(1, 3, 3 * patch, 4 * patch)
    expected = features(images)[0]
    file = io.BytesIO()
    torch.save(features, file)
    file.seek(0)
    for other in (copy.deepcopy(features), torch.load(file, weights_only=False)):
        for parameter in features.parameters():
            parameter.data.zero_()
        assert torch.equal(other(images)[0], expected)


def test_perception_encoder_counts_cells() -> None:
    """Its authors give a cell the same rotation on every grid; timm stretches each grid to the trained one."""
    network = tiny("vit_pe_core_base_patch16_224", dynamic_img_size=True)
    follow_the_authors(network, BILINEAR)
    small = network.rope.get_embed(shape=[3, 5]).unflatten(0, (3, 5))
    large = network.rope.get_embed(shape=[17, 23]).unflatten(0, (17, 23))
    torch.testing.assert_close(small, large[:3, :5])
