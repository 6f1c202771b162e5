from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vfmdistill.errors import InputError
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.timm_features import TimmFeatures

IMAGES = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(0))
GRID = (3, 5)


def vit(name: str = "vit_small_patch16_dinov3", **options: Any) -> Any:
    size = {"embed_dim": 48, "depth": 3, "num_heads": 2, "num_classes": 0, "dynamic_img_size": True} | options
    return _randomised(timm.create_model(name, **size))


def _randomised(network: Any) -> Any:
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval().requires_grad_(False)


def block_outputs(network: Any, images: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []
    handles = [block.register_forward_hook(lambda m, args, output: outputs.append(output)) for block in network.blocks]
    network.forward_features(images)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_base_patch16_clip_224", "aimv2_large_patch14_224"])
@pytest.mark.parametrize("blocks", [None, (2,), (3, 1)])
def test_chosen_blocks_behind_the_final_norm(name: str, blocks: tuple[int, ...] | None) -> None:
    network = vit(name)
    images = IMAGES if "patch16" in name else IMAGES[..., :42, :70]
    norm = network.fc_norm if isinstance(network.norm, nn.Identity) else network.norm
    assert not isinstance(norm, nn.Identity)
    outputs = block_outputs(network, images)
    expected = [norm(outputs[block - 1])[:, -15:].mT.unflatten(-1, GRID) for block in blocks or (3,)]
    feature_map, summary = TimmFeatures(network, Readout(blocks=blocks))(images)
    torch.testing.assert_close(feature_map, torch.cat(expected, 1))
    torch.testing.assert_close(summary, network.forward_head(network.forward_features(images), pre_logits=True))
    mean = TimmFeatures(network, Readout(blocks=blocks, merge="mean"))(images)[0]
    torch.testing.assert_close(mean, sum(expected) / len(expected))


def test_sam_puts_each_block_through_its_neck() -> None:
    sizes = {"embed_dim": 48, "depth": 3, "num_heads": 2, "img_size": 64, "global_attn_indexes": (2,)}
    network = _randomised(timm.create_model("samvit_base_patch16", num_classes=0, **sizes))
    outputs = block_outputs(network, IMAGES)
    feature_map, _ = TimmFeatures(network, Readout(blocks=(1, 3)))(IMAGES)
    expected = torch.cat([network.neck(outputs[i].permute(0, 3, 1, 2)) for i in (0, 2)], dim=1)
    torch.testing.assert_close(feature_map, expected)


@pytest.mark.parametrize("name", ["convnext_atto", "hiera_tiny_224", "hieradet_small"])
def test_the_norm_behind_the_pooling_is_applied_to_each_cell(name: str) -> None:
    """A constant map is its own average, so that norm after pooling and norm in each cell agree there."""
    network = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
    features = TimmFeatures(network)
    images = torch.rand(1, 3, 224, 224)
    raw = network.forward_intermediates(images, indices=1)[1][0]
    norm = network.head.norm
    assert isinstance(norm, nn.LayerNorm)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean, spread = raw.mean(1, keepdim=True), raw.var(1, keepdim=True, unbiased=False)
    expected = (raw - mean) / (spread + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(features(images)[0], expected, rtol=1e-4, atol=1e-4)


def test_sam2_has_no_norm_behind_its_trunk() -> None:
    network = timm.create_model("sam2_hiera_tiny", num_classes=0).eval().requires_grad_(False)
    images = torch.rand(1, 3, 128, 192)
    raw = network.forward_intermediates(images, indices=1)[1][0]
    assert torch.equal(TimmFeatures(network)(images)[0], raw)


def test_blocks_of_a_hierarchical_network() -> None:
    network = timm.create_model("resnet18", num_classes=0)
    with pytest.raises(InputError, match="teacher 'mine' is hierarchical: its 5 stages differ"):
        TimmFeatures(network, Readout(blocks=(2,)), "mine")


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "eva02_tiny_patch14_224"])
def test_rotary_positions_stay_precise_in_half_precision(name: str) -> None:
    network = vit(name)
    features = TimmFeatures(network)
    before = network.rope.get_embed(shape=[17, 23]).float()
    features.to(torch.bfloat16)
    assert next(network.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(network.rope.get_embed(shape=[17, 23]).float(), before, rtol=0, atol=0.01)
    frequencies = [buffer for key, buffer in network.rope.named_buffers() if buffer.is_floating_point()]
    assert frequencies
    assert {buffer.dtype for buffer in frequencies} == {torch.float32}
    size = [cells * network.patch_embed.patch_size[0] for cells in GRID]
    assert features(torch.rand(1, 3, *size).bfloat16())[0].dtype == torch.bfloat16
