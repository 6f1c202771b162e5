"""Formats are recognised by their keys; what is for another size is refused, what no teacher runs is dropped."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vfmdistill.errors import WeightsError
from vfmdistill.teachers.files import load_strictly
from vfmdistill.teachers.key_maps import to_timm_names

State = dict[str, Tensor]

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64}


def tiny(name: str, **options: Any) -> Any:
    network = timm.create_model(name, num_classes=0, **options)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network.eval()


def assert_comes_back(network: nn.Module, given: State) -> None:
    """The state that is given under other names is the network's own."""
    expected = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    found = {key: tensor.clone() for key, tensor in to_timm_names(given, network, "mine").items()}
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    load_strictly(network, found, "mine", "a.pth")
    for key, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], msg=key)


def renamed(state: State, *rules: tuple[str, str], prefix: str = "") -> State:
    out = {}
    for key, tensor in state.items():
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        out[prefix + key] = tensor
    return out


OTHER_PARTS = {"text.token_embedding.weight": torch.zeros(2, 2), "logit_scale": torch.zeros(())}


class TestMeta:
    def test_mae_with_its_decoder(self) -> None:
        network = tiny("vit_base_patch16_224.mae", **VIT)
        decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_pos_embed": torch.zeros(1, 5, 8)}
        assert_comes_back(network, network.state_dict() | decoder | {"decoder_blocks.0.norm1.weight": torch.zeros(8)})

    def test_convnext_of_dinov3(self) -> None:
        network = tiny("convnext_tiny.dinov3_lvd1689m", dims=(8, 16, 24, 32), depths=(1, 2, 1, 1))
        state = renamed(
            network.state_dict(),
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"\.blocks\.", "."),
            (r"conv_dw", "dwconv"),
            (r"mlp\.fc", "pwconv"),
            (r"^head\.norm", "norm"),
        )
        assert_comes_back(network, state | {"norms.3.weight": state["norm.weight"], "norms.3.bias": state["norm.bias"]})

    def test_sam(self) -> None:
        network = tiny("samvit_base_patch16", **VIT, window_size=2)
        state = renamed(network.state_dict(), (r"mlp\.fc", "mlp.lin"), prefix="image_encoder.")
        assert_comes_back(network, state | {"mask_decoder.iou_token.weight": torch.zeros(1, 2)})

    @pytest.mark.parametrize("norm", ["norm", "encoder_norm"])
    def test_hiera(self, norm: str) -> None:
        """Supervised, and from masked autoencoding with its decoder."""
        network = tiny("hiera_tiny_224", embed_dim=16, num_heads=1, stages=(1, 1, 1, 1))
        state = renamed(network.state_dict(), (r"^head\.norm", norm))
        if norm == "norm":
            state |= {"head.projection.weight": torch.zeros(3, 128), "head.projection.bias": torch.zeros(3)}
        else:
            state |= {key: torch.zeros(1) for key in ("mask_token", "decoder_pos_embed", "decoder_norm.weight")}
            state |= {"multi_scale_fusion_heads.0.weight": torch.zeros(1)}
        assert_comes_back(network, state)

    def test_sam2(self) -> None:
        network = tiny("sam2_hiera_tiny", embed_dim=16, stages=(1, 1, 1, 1), global_att_blocks=())
        nn.init.ones_(network.head.norm.weight)  # which the file does not have
        nn.init.zeros_(network.head.norm.bias)
        state = renamed(
            {key: tensor for key, tensor in network.state_dict().items() if not key.startswith("head.")},
            (r"mlp\.fc1", "mlp.layers.0"),
            (r"mlp\.fc2", "mlp.layers.1"),
            prefix="image_encoder.trunk.",
        )
        others = {"image_encoder.neck.convs.0.conv.weight": torch.zeros(1), "maskmem_tpos_enc": torch.zeros(1)}
        assert_comes_back(network, state | others)


class TestNvidia:
    def test_radio(self) -> None:
        """Its table of 128 × 128 positions stays as it is; what belongs to its teachers is dropped."""
        pytest.importorskip("timm", "1.0.31")
        network = tiny("naflexvit_base_patch16_radio_v3", embed_dim=32, depth=2, num_heads=2)
        own = network.state_dict()
        state = renamed(own, (r"^embeds\.", "patch_generator."), prefix="radio_model.model.")
        generator = "radio_model.model.patch_generator."
        tokens = torch.cat([state.pop(f"{generator}cls_token"), state.pop(f"{generator}reg_token")], dim=1)[0]
        del state[f"{generator}proj.bias"]
        network.embeds.proj.bias.data.zero_()
        linear = state.pop(f"{generator}proj.weight").unflatten(1, (16, 16, 3)).permute(0, 3, 1, 2).flatten(1)
        state |= {f"{generator}cls_token.token": tokens, f"{generator}embedder.weight": linear}
        state[f"{generator}pos_embed"] = state[f"{generator}pos_embed"].flatten(1, 2)
        assert_comes_back(network, state | {"radio_model.summary_idxs": torch.zeros(2)})


class TestOpenClip:
    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("vit_base_patch16_siglip_224", VIT),
            ("eva02_base_patch16_clip_224", VIT),
            ("convnext_base.clip_laion2b", {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1)}),
            ("fastvit_mci0.apple_mclip", {}),
        ],
    )
    def test_towers_from_timm(self, name: str, options: dict[str, Any]) -> None:
        network = tiny(name, **options)
        assert_comes_back(network, renamed(network.state_dict(), prefix="visual.trunk.") | OTHER_PARTS)

    def test_a_convnext_takes_its_head_from_outside_of_the_trunk(self) -> None:
        network = tiny("convnext_large_mlp", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1))
        state = renamed(
            network.state_dict(),
            (r"^", "visual.trunk."),
            (r"visual\.trunk\.head\.pre_logits\.fc", "visual.head.mlp.fc1"),
        )
        assert_comes_back(network, state | OTHER_PARTS | {"visual.head.mlp.fc2.weight": torch.zeros(4, 3072)})


class TestEfficientNet:
    def test_with_squeeze_and_excitation(self) -> None:
        network = tiny("tf_efficientnet_b0")
        blocks = [f"blocks.{s}.{b}." for s, stage in enumerate(network.blocks) for b in range(len(stage))]
        state: State = {}
        for key, tensor in network.state_dict().items():
            place = next((number for number, block in enumerate(blocks) if key.startswith(block)), None)
            names = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1"}
            module, leaf = key.rsplit(".", 1)
            if place is not None:
                module = module.removeprefix(blocks[place])
                names = {"se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand", "conv_dw": "_depthwise_conv"}
                if place:
                    names |= {"conv_pw": "_expand_conv", "bn1": "_bn0", "bn2": "_bn1"}
                    names |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
                else:
                    names |= {"bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
            state[f"{'' if place is None else f'_blocks.{place}.'}{names[module]}.{leaf}"] = tensor
        assert_comes_back(network, state | {"_fc.weight": torch.zeros(3, 4), "_fc.bias": torch.zeros(3)})


class TestHeads:
    def test_an_attention_pooling_that_the_network_lacks(self) -> None:
        with_pooling = tiny("vit_base_patch16_siglip_224", **VIT)
        network = tiny("vit_base_patch16_siglip_gap_224", **VIT)
        network.load_state_dict(with_pooling.state_dict(), strict=False)
        assert_comes_back(network, with_pooling.state_dict())

    def test_any_other_tensor_that_is_left_over_stays(self) -> None:
        network = tiny("vit_base_patch16_siglip_gap_224", **VIT)
        assert "adapter.weight" in to_timm_names(
            network.state_dict() | {"adapter.weight": torch.zeros(1)}, network, "a"
        )


def as_timm(state: State) -> State:
    return state


def as_open_clip(state: State) -> State:
    return renamed(state, prefix="visual.trunk.")


def as_open_ais(state: State) -> State:
    return {
        "visual.class_embedding": state["cls_token"][0, 0],
        "visual.positional_embedding": state["pos_embed"][0],
        "visual.conv1.weight": state["patch_embed.proj.weight"],
    }


class TestOtherSizes:
    """timm would resample what is of another size, without a word, and give another teacher."""

    @pytest.mark.parametrize("convert", [as_timm, as_open_clip, as_open_ais])
    def test_positions(self, convert: Callable[[State], State]) -> None:
        given = convert(tiny("vit_base_patch16_clip_224", **VIT).state_dict())
        network = tiny("vit_base_patch16_clip_224", **VIT | {"img_size": 96})
        with pytest.raises(
            WeightsError, match=r"'mine': their table of positions is .*17, 32\), expected \(1, 37, 32\)"
        ):
            to_timm_names(given, network, "mine")

    @pytest.mark.parametrize("convert", [as_timm, as_open_clip, as_open_ais])
    def test_patches(self, convert: Callable[[State], State]) -> None:
        given = convert(tiny("vit_base_patch16_clip_224", **VIT).state_dict())
        network = tiny("vit_base_patch32_clip_224", **VIT | {"img_size": 128})
        with pytest.raises(
            WeightsError, match=r"their patch embedding is \(32, 3, 16, 16\), expected \(32, 3, 32, 32\)"
        ):
            to_timm_names(given, network, "mine")

    def test_relative_positions(self) -> None:
        given = tiny("beit_base_patch16_224", **VIT).state_dict()
        network = tiny("beit_base_patch16_224", **VIT | {"img_size": 96})
        with pytest.raises(WeightsError, match="their table of relative positions is"):
            to_timm_names(given, network, "mine")

    def test_what_is_given_is_left_alone(self) -> None:
        given = tiny("vit_small_patch14_reg4_dinov2", **VIT | {"img_size": 56}).state_dict()
        network = tiny("vit_small_patch14_reg4_dinov2", **VIT | {"img_size": 56})
        before = {key: tensor.clone() for key, tensor in given.items()}
        to_timm_names(given, network, "mine")
        assert given.keys() == before.keys()
        assert all(torch.equal(given[key], tensor) for key, tensor in before.items())
