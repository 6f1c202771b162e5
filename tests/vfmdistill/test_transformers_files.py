"""What a teacher on transformers reads from a folder: its weights and its spec. Nothing here uses a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vfmdistill.errors import InputError, WeightsError
from vfmdistill.teacher import Teacher
from vfmdistill.teachers.catalog import loader_for, teacher_spec

transformers = pytest.importorskip("transformers")
from support.tiny_transformers import SMALL, as_tokens, features, network_of, saved  # noqa: E402


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
