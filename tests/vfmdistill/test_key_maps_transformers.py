"""Whole models of transformers, of which a teacher is a part, and their less usual forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from vfmdistill.errors import WeightsError
from vfmdistill.teachers.files import load_strictly, read_state_dict
from vfmdistill.teachers.key_maps import to_timm_names
from vfmdistill.teachers.namings_transformers import NAMINGS

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
TEXT = SIZES | {"num_hidden_layers": 1, "vocab_size": 20, "max_position_embeddings": 8}
VISION = SIZES | {"image_size": 64, "patch_size": 16}
TIMM = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64, "num_classes": 0}


def clip() -> nn.Module:
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=8))


def siglip() -> nn.Module:
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION))


def mae() -> nn.Module:
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_attention_heads": 2,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 16,
    }
    return transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**VISION, **decoder))


def dinov2_classifier() -> nn.Module:
    config = VISION | {"image_size": 56, "patch_size": 14}
    return transformers.Dinov2ForImageClassification(transformers.Dinov2Config(**config))


def sam() -> nn.Module:
    vision = VISION | {"output_channels": 256, "mlp_dim": 128, "window_size": 2, "global_attn_indexes": [1]}
    prompt = {"hidden_size": 256, "image_size": 64, "image_embedding_size": 4}
    return transformers.SamModel(transformers.SamConfig(vision_config=vision, prompt_encoder_config=prompt))


@pytest.mark.parametrize(
    ("build", "model", "options"),
    [
        (clip, "vit_base_patch16_clip_quickgelu_224", {}),
        (siglip, "vit_base_patch16_siglip_224", {}),
        (mae, "vit_base_patch16_224", {}),
        (dinov2_classifier, "vit_small_patch14_dinov2", {"img_size": 56}),
        (sam, "samvit_base_patch16", {"window_size": 2, "global_attn_indexes": (1,)}),
    ],
)
def test_the_encoder_is_found(build: Any, model: str, options: dict[str, Any], tmp_path: Path) -> None:
    given = build()
    given.save_pretrained(tmp_path)
    network = timm.create_model(model, **TIMM | options)
    load_strictly(network, to_timm_names(read_state_dict(tmp_path), network, model), model, tmp_path)
    patches = next(tensor for tensor in given.state_dict().values() if tensor.ndim == 4)
    assert any(torch.equal(parameter, patches) for parameter in network.parameters())


def test_in_several_files(tmp_path: Path) -> None:
    whole = clip()
    whole.save_pretrained(tmp_path / "one")
    whole.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    assert (tmp_path / "many" / "model.safetensors.index.json").exists()
    one, many = (read_state_dict(tmp_path / folder) for folder in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[key], many[key]) for key in one)


@pytest.mark.parametrize("model", ["vit_base_patch16_siglip_224", "naflexvit_base_patch16_siglip"])
def test_siglip_2_for_any_aspect_ratio(model: str, tmp_path: Path) -> None:
    """Its patches come flattened as (height, width, channel), to a linear layer."""
    config = transformers.Siglip2VisionConfig(**SIZES, patch_size=16, num_patches=16)
    theirs = transformers.Siglip2VisionModel(config).eval()
    theirs.save_pretrained(tmp_path)
    sizes = {"pos_embed_grid_size": (4, 4)} if "naflex" in model else {"act_layer": "gelu_tanh", "img_size": 64}
    network = timm.create_model(model, **{**TIMM, "img_size": 64} | sizes).eval()
    load_strictly(network, to_timm_names(read_state_dict(tmp_path), network, "mine"), "mine", tmp_path)
    image = torch.rand(1, 3, 64, 64)
    patches = image.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 4, 5, 1).reshape(1, 16, 768)
    with torch.no_grad():
        expected = theirs(patches, torch.ones(1, 16, dtype=torch.long), torch.tensor([[4, 4]])).last_hidden_state
        torch.testing.assert_close(network.forward_features(image), expected, rtol=0, atol=1e-4)


def test_a_file_of_a_larger_network_is_refused(tmp_path: Path) -> None:
    dinov2_classifier().save_pretrained(tmp_path)
    network = timm.create_model("vit_small_patch14_dinov2", **TIMM | {"img_size": 56, "depth": 1})
    with pytest.raises(WeightsError, match=r"14 left over: blocks\.1\."):
        load_strictly(network, to_timm_names(read_state_dict(tmp_path), network, "mine"), "mine", tmp_path)


def test_a_query_that_is_missing_is_no_zero(tmp_path: Path) -> None:
    dinov2_classifier().save_pretrained(tmp_path)
    state = read_state_dict(tmp_path)
    del state["dinov2.encoder.layer.1.attention.attention.query.weight"]
    network = timm.create_model("vit_small_patch14_dinov2", **TIMM | {"img_size": 56})
    with pytest.raises(WeightsError, match=r"1 missing: blocks\.1\.attn\.qkv\.weight; 2 left over: blocks\.1\.attn\.k"):
        load_strictly(network, to_timm_names(state, network, "mine"), "mine", tmp_path)


def test_biases_that_the_network_lacks(tmp_path: Path) -> None:
    pytest.importorskip("transformers", "4.56")
    config = transformers.DINOv3ViTConfig(**SIZES, num_register_tokens=4)
    theirs = transformers.DINOv3ViTModel(config)
    nn.init.normal_(theirs.get_parameter(next(key for key, _ in theirs.named_parameters() if "q_proj.bias" in key)))
    theirs.save_pretrained(tmp_path)
    options = {key: value for key, value in TIMM.items() if key != "img_size"}
    network = timm.create_model("vit_small_patch16_dinov3", **options)
    with pytest.raises(WeightsError, match=r"attn\.qkv\.bias is not zero.*'qkvb'"):
        to_timm_names(load_file(tmp_path / "model.safetensors"), network, "mine")


def test_a_name_that_is_not_known_is_kept(tmp_path: Path) -> None:
    dinov2_classifier().save_pretrained(tmp_path)
    state = read_state_dict(tmp_path) | {"dinov2.encoder.layer.0.adapter.weight": torch.zeros(1)}
    network = timm.create_model("vit_small_patch14_dinov2", **TIMM | {"img_size": 56})
    assert "blocks.0.adapter.weight" in to_timm_names(state, network, "mine")


def test_no_family_is_taken_for_another() -> None:
    """A marker is the ending of a key, so none may end another that comes behind it."""
    for number, naming in enumerate(NAMINGS):
        for later in NAMINGS[number + 1 :]:
            assert not f".{later.marker}".endswith(f".{naming.marker}")
