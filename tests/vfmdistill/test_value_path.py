from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from vfmdistill.errors import InputError
from vfmdistill.teachers import value_path as module
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.timm_features import TimmFeatures
from vfmdistill.teachers.value_path import value_path

VALUE = Readout(dense="value")


def tiny(name: str, **options: Any) -> Any:
    size = {"embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 0} | options
    network = timm.create_model(name, **size).eval().requires_grad_(False)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def test_it_is_the_values_through_the_output_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TOKENS_AT_ONCE", 4)  # which does not divide 3 × 7
    attention = nn.MultiheadAttention(12, 3, batch_first=True)
    nn.init.normal_(attention.in_proj_bias)
    tokens = torch.randn(3, 7, 12)
    values = F.linear(tokens, attention.in_proj_weight[24:], attention.in_proj_bias[24:])
    got = value_path(lambda some: attention(some, some, some, need_weights=False)[0], tokens)
    torch.testing.assert_close(got, attention.out_proj(values))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_base_patch16_clip_quickgelu_224", {"dynamic_img_size": True}),
        ("vit_base_patch16_siglip_224", {"dynamic_img_size": True}),
        ("eva02_base_patch16_clip_224", {"dynamic_img_size": True}),
    ],
)
def test_as_maskclip_has_it(name: str, options: dict[str, Any]) -> None:
    """Norm, values and output projection of the last attention by hand, then the final norm; no residual, no MLP."""
    network = tiny(name, **options)
    last = network.blocks[-1]
    entering = []
    handle = last.register_forward_pre_hook(lambda block, args: entering.append(args[0]))
    images = torch.randn(2, 3, 3 * 16, 5 * 16)
    feature_map, summary = TimmFeatures(network, VALUE)(images)
    handle.remove()
    attention = last.attn
    tokens = last.norm1(entering[0])
    if getattr(attention, "v_proj", None) is not None:
        values = attention.v_proj(tokens)
    elif isinstance(attention.qkv.bias, torch.Tensor):
        values = attention.qkv(tokens)[..., 96:]
    else:
        values = F.linear(tokens, attention.qkv.weight[96:], attention.v_bias)
    expected = network.norm(attention.proj(attention.norm(values)))[:, -15:]  # the class token comes first
    torch.testing.assert_close(feature_map, expected.mT.unflatten(-1, (3, 5)))
    tokens_map, tokens_summary = TimmFeatures(network)(images)
    assert torch.equal(summary, tokens_summary)
    assert not torch.allclose(feature_map, tokens_map, atol=0.1)


@pytest.mark.parametrize("name", ["resnet18", "samvit_base_patch16", "beitv2_base_patch16_224"])
def test_networks_without_a_value_path(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    with pytest.raises(InputError, match="teacher 'mine' has no value path"):
        TimmFeatures(network, VALUE, "mine")
