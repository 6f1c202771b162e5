"""Teachers on transformers, against transformers' own forward, with small networks. Nothing here uses a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from vfmdistill.errors import InputError, WeightsError
from vfmdistill.teacher import Teacher
from vfmdistill.teachers.catalog import loader_for, teacher_spec
from vfmdistill.teachers.readout import Readout

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 48,
    "patch_size": 8,
}
PLAIN = [
    "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model", "siglip_vision_model", "vit", "vit_mae",
    "ijepa", "deit", "beit", "data2vec-vision", "vit_msn", "tipsv2_vision_model", "radio", "pixio", "sapiens2",
]  # fmt: skip
HIERARCHICAL = {
    "convnextv2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "dinov3_convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "layer_type": "basic"},
    "swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": 64, "window_size": 4},
    "hiera": {
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "image_size": [64, 64],
        "num_query_pool": 1,
        "masked_unit_size": [2, 2],  # as wide as all pooling together, as in the published networks
    },
}


def config_of(kind: str, **options: Any) -> Any:
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")
    return transformers.CONFIG_MAPPING[kind](**(HIERARCHICAL.get(kind) or SMALL) | options)


def saved(network: Any, folder: Path, **processor: Any) -> str:
    """Save a network with norms and biases that are not what they begin with; the name of the teacher."""
    for key, parameter in network.named_parameters():
        if "norm" in key or "bias" in key or "position" in key or "token" in key:
            nn.init.normal_(parameter, std=0.5)
    network.eval().save_pretrained(folder)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]} | processor
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return f"hf:{folder}"


def network_of(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config_of(kind, **options))


def features(name: str, images: Tensor, readout: Readout | None = None) -> tuple[Tensor, Tensor | None]:
    spec = teacher_spec(name)
    with torch.no_grad():
        output = loader_for(spec)(spec, True, None, readout).eval()(images)
    feature_map, summary = output
    return feature_map, summary


def as_tokens(feature_map: Tensor) -> Tensor:
    return feature_map.flatten(2).mT


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


class TestFiles:
    def test_a_model_for_images_and_text_gives_its_image_tower(self, tmp_path: Path) -> None:
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        model: Any = transformers.CLIPModel(transformers.CLIPConfig(vision_config=SMALL, text_config=text))
        name = saved(model, tmp_path)
        tower = model.vision_model.eval()
        images = torch.rand(1, 3, 48, 48)
        with torch.no_grad():
            expected = tower.post_layernorm(tower(images).last_hidden_state[:, 1:])
        torch.testing.assert_close(as_tokens(features(name, images)[0]), expected, rtol=1e-4, atol=1e-5)

    def test_shards(self, tmp_path: Path) -> None:
        network = network_of("dinov2")
        name = saved(network, tmp_path / "whole")
        network.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
        assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
        (tmp_path / "whole" / "preprocessor_config.json").rename(tmp_path / "shards" / "preprocessor_config.json")
        images = torch.rand(1, 3, 48, 48)
        (tmp_path / "whole" / "preprocessor_config.json").write_text('{"do_normalize": false}')
        assert torch.equal(features(f"hf:{tmp_path / 'shards'}", images)[0], features(name, images)[0])

    def test_weights_from_another_file(self, tmp_path: Path) -> None:
        name = saved(network_of("dinov2"), tmp_path / "one")
        other = network_of("dinov2")
        nn.init.normal_(other.layernorm.weight)
        other.save_pretrained(tmp_path / "two")
        before = torch.random.get_rng_state()
        spec = teacher_spec(name)
        loaded: Any = loader_for(spec)(spec, True, tmp_path / "two" / "model.safetensors", None)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert torch.equal(loaded.network.layernorm.weight, other.layernorm.weight)

    def test_what_does_not_fit_is_listed(self, tmp_path: Path) -> None:
        network = network_of("dinov2")
        name = saved(network, tmp_path)
        state = network.state_dict()
        state["layernorm.scale"] = state.pop("layernorm.weight")
        state["embeddings.cls_token"] = torch.zeros(1, 1, 31)
        torch.save(state, tmp_path / "other.bin")
        spec = teacher_spec(name)
        with pytest.raises(WeightsError) as caught:
            loader_for(spec)(spec, True, tmp_path / "other.bin", None)
        message = str(caught.value)
        for words in ("1 missing: layernorm.weight", "1 left over: layernorm.scale", "1 of another shape"):
            assert words in message
        assert "embeddings.cls_token" in message

    def test_without_weights(self, tmp_path: Path) -> None:
        name = saved(network_of("dinov2"), tmp_path)
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(WeightsError, match=r"has no model\.safetensors or model\.safetensors\.index\.json or"):
            Teacher(name)
        assert Teacher(name, pretrained=False).embed_dim == 32


class TestSpec:
    def test_it_is_read_from_the_folder(self, tmp_path: Path) -> None:
        network = network_of("dinov2")
        spec = teacher_spec(saved(network, tmp_path / "dinov2-tiny"))
        assert (spec.backend, spec.family, spec.patch_size, spec.embed_dim) == ("transformers", "dinov2", 8, 32)
        assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert spec.params == sum(parameter.numel() for parameter in network.parameters())
        assert (spec.license, spec.gated, spec.dense) == ("unknown", False, "tokens")

    def test_images_that_are_not_normalised(self, tmp_path: Path) -> None:
        spec = teacher_spec(saved(network_of("dinov2"), tmp_path, do_normalize=False))
        assert (spec.mean, spec.std) == ((0, 0, 0), (1, 1, 1))

    def test_a_processor_that_holds_the_image_processor(self, tmp_path: Path) -> None:
        name = saved(network_of("dinov2"), tmp_path)
        settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
        (tmp_path / "preprocessor_config.json").unlink()
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
        assert teacher_spec(name).mean == (0.1, 0.2, 0.3)

    def test_nothing_said_about_normalisation(self, tmp_path: Path) -> None:
        name = saved(network_of("dinov2"), tmp_path, image_mean=None)
        with pytest.raises(InputError, match="no image_mean and image_std"):
            teacher_spec(name)
        (tmp_path / "preprocessor_config.json").unlink()
        with pytest.raises(WeightsError, match=r"has no preprocessor_config\.json or processor_config\.json"):
            teacher_spec(name)

    def test_neither_a_folder_nor_a_repository(self) -> None:
        for name in ("hf:nowhere", "hf:/no/such/folder", "hf:./no/folder"):
            with pytest.raises(InputError, match="neither a folder nor OWNER/NAME"):
                teacher_spec(name)

    def test_a_network_for_one_size_only(self, tmp_path: Path) -> None:
        name = saved(network_of("sam_vision_model"), tmp_path)
        with pytest.raises(InputError, match=r"takes no images of 40 × 24 pixels.*Take timm's or open_clip's copy"):
            teacher_spec(name)

    def test_a_network_that_sees_nothing(self, tmp_path: Path) -> None:
        reader = transformers.BertConfig(num_hidden_layers=1, hidden_size=24, num_attention_heads=2)
        name = saved(transformers.BertModel(reader), tmp_path)
        with pytest.raises(InputError, match="BertModel, which does not see images"):
            teacher_spec(name)

    def test_an_unknown_kind(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "of tomorrow"}')
        with pytest.raises(InputError, match="cannot be built by this version of transformers"):
            teacher_spec(f"hf:{tmp_path}")
