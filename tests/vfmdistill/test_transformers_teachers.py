"""Teachers on transformers, against transformers' own forward, with small networks. Nothing here uses a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vfmdistill.errors import InputError
from vfmdistill.teacher import Teacher
from vfmdistill.teachers.catalog import loader_for, teacher_spec
from vfmdistill.teachers.readout import Readout

pytest.importorskip("transformers")
from support.tiny_transformers import HIERARCHICAL, as_tokens, features, network_of, saved

PLAIN = [
    "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "siglip_vision_model", "vit", "vit_mae",
    "ijepa", "deit", "beit", "data2vec-vision", "vit_msn", "tipsv2_vision_model", "radio", "pixio", "sapiens2",
]  # fmt: skip


@pytest.mark.parametrize("kind", PLAIN)
def test_tokens_equal_those_of_transformers(kind: str, tmp_path: Path) -> None:
    """At the native size, where nobody resamples positions."""
    network = network_of(kind)
    images = torch.rand(2, 3, 48, 48)
    name = saved(network, tmp_path)
    options: dict[str, Any] = {}
    if kind == "vit_mae":
        network.config.mask_ratio = 0.0
        options["noise"] = torch.arange(36.0).expand(2, -1)
    with torch.no_grad():
        expected = network(images, **options).last_hidden_state[:, -36:]
        if kind == "clip_vision_model":  # transformers norms the pooled token only
            norm = dict(network.named_modules())
            expected = norm[next(key for key in norm if key.endswith("post_layernorm"))](expected)
        if kind == "beit":  # which averages and then norms, in its pooler
            expected = network.pooler.layernorm(expected)
    feature_map, summary = features(name, images)
    assert feature_map.shape == (2, 32, 6, 6)
    torch.testing.assert_close(as_tokens(feature_map), expected, rtol=1e-4, atol=1e-5)
    assert summary is None or summary.shape == (2, 32)
    assert (summary is None) == (kind == "ijepa")


@pytest.mark.parametrize("kind", PLAIN)
def test_every_grid(kind: str, tmp_path: Path) -> None:
    teacher = Teacher(saved(network_of(kind), tmp_path))
    for grid in ((20, 20), (10, 15), (17, 23)):
        assert teacher.network(torch.rand(1, 3, 8 * grid[0], 8 * grid[1]))[0].shape == (1, 32, *grid)


@pytest.mark.parametrize("kind", list(HIERARCHICAL))
def test_hierarchical_networks_give_their_last_stage(kind: str, tmp_path: Path) -> None:
    network = network_of(kind)
    name = saved(network, tmp_path)
    spec = teacher_spec(name)
    images = torch.rand(1, 3, 4 * spec.patch_size, 6 * spec.patch_size)
    options = {"interpolate_pos_encoding": True} if kind == "hiera" else {}
    with torch.no_grad():
        output = network(images, **options)
    expected = output.last_hidden_state
    if kind == "convnextv2":  # normed behind the pooling
        expected = network.layernorm(expected.movedim(1, -1)).movedim(-1, 1)
    expected = expected.flatten(2).mT if expected.ndim == 4 else expected[:, -24:]
    feature_map, summary = features(name, images)
    assert feature_map.shape == (1, spec.embed_dim, 4, 6)
    torch.testing.assert_close(as_tokens(feature_map), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(summary, output.pooler_output.flatten(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="is hierarchical"):
        features(name, images, Readout(blocks=(1,)))
    with pytest.raises(InputError, match="has no value path"):
        features(name, images, Readout(dense="value"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        # What `positions.RULES` say, with their sources: DINOv2, with registers, SigLIP, CLIP, MAE, Google's ViT.
        ("dinov2", {"scale_factor": (4.1 / 6, 9.1 / 6), "mode": "bicubic"}),
        ("dinov2_with_registers", {"size": (4, 9), "mode": "bicubic", "antialias": True}),
        ("siglip_vision_model", {"size": (4, 9), "mode": "bilinear", "align_corners": True}),
        ("clip_vision_model", {"size": (4, 9), "mode": "bicubic", "antialias": True}),
        ("vit_mae", {"size": (4, 9), "mode": "bicubic"}),
        ("vit", {"size": (4, 9), "mode": "bilinear", "align_corners": True}),
    ],
)
def test_positions_are_resampled_as_the_authors_do(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    name = saved(network_of(kind), tmp_path)
    spec = teacher_spec(name)
    network: Any = loader_for(spec)(spec, True, None)
    holder = next(module for module in network.modules() if hasattr(module, "interpolate_pos_encoding"))
    table = holder.position_embedding.weight[None] if "position_embedding" in holder._modules else None
    table = holder.position_embeddings if table is None else table
    prefix = table.shape[1] - 36
    cells = F.interpolate(table[:, prefix:].mT.reshape(1, 32, 6, 6), **options)
    expected = torch.cat([table[:, :prefix], cells.flatten(2).mT], dim=1)
    torch.testing.assert_close(holder.interpolate_pos_encoding(torch.empty(1, 36 + prefix, 32), 32, 72), expected)
    assert network(torch.rand(1, 3, 32, 72))[0].shape == (1, 32, 4, 9)


def test_blocks_are_concatenated_in_the_order_given_or_averaged(tmp_path: Path) -> None:
    network = network_of("dinov2")
    name = saved(network, tmp_path)
    images = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        hidden = network(images, output_hidden_states=True).hidden_states
        first, last = (network.layernorm(hidden[block])[:, -36:] for block in (1, 3))
    both, _ = features(name, images, Readout(blocks=(3, 1)))
    torch.testing.assert_close(as_tokens(both), torch.cat([last, first], dim=2), rtol=1e-4, atol=1e-5)
    mean, _ = features(name, images, Readout(blocks=(3, 1), merge="mean"))
    torch.testing.assert_close(as_tokens(mean), (first + last) / 2, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="has 3 blocks"):
        features(name, images, Readout(blocks=(4,)))


def test_the_value_path_is_what_maskclip_computes(tmp_path: Path) -> None:
    network = network_of("clip_vision_model")
    name = saved(network, tmp_path)
    assert teacher_spec(name).dense == "value"
    images = torch.rand(2, 3, 48, 48)
    modules = dict(network.named_modules())
    block = modules[next(key for key in modules if key.endswith("layers.2"))]
    norm = modules[next(key for key in modules if key.endswith("post_layernorm"))]
    with torch.no_grad():
        entering = network(images, output_hidden_states=True).hidden_states[2][:, 1:]
        expected = norm(block.self_attn.out_proj(block.self_attn.v_proj(block.layer_norm1(entering))))
    found, _ = features(name, images, Readout(dense="value"))
    torch.testing.assert_close(as_tokens(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov3_vit", "beit"])
def test_networks_without_a_value_path(kind: str, tmp_path: Path) -> None:
    name = saved(network_of(kind), tmp_path)
    with pytest.raises(InputError, match="without rotary or relative positions"):
        features(name, torch.rand(1, 3, 48, 48), Readout(dense="value"))
