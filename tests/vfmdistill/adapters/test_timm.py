from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from support.students import Wide
from support.tapped import tapped
from timm.models.densenet import DenseNet
from timm.models.hiera import Hiera
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from vfmdistill import CaptureError, attach
from vfmdistill.adapters import Tap, find_adapter
from vfmdistill.adapters.timm import TimmAdapter

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _vit(**options: Any) -> VisionTransformer:
    return VisionTransformer((64, 96), 16, embed_dim=8, depth=2, num_heads=2, num_classes=4, **options)


def _swin(kind: Any, **options: Any) -> nn.Module:
    student: nn.Module = kind((64, 96), 2, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=4, **options)
    return student


# Where the network has forward_intermediates(), its last intermediate of stride 32 or less is what is expected.
STUDENTS = {
    "resnet": (lambda: timm.create_model("test_resnet"), "layer4", (96, 2, 3)),
    "convnext": (lambda: timm.create_model("test_convnext"), "stages.3", (64, 2, 3)),
    "efficientnet": (lambda: timm.create_model("test_efficientnet"), "blocks.4", (64, 2, 3)),
    "byobnet": (lambda: timm.create_model("test_byobnet"), "stages.3", (256, 2, 3)),
    "mobilenetv4": (lambda: timm.create_model("mobilenetv4_conv_small_050"), "blocks.4", (480, 2, 3)),
    "regnet": (lambda: timm.create_model("regnetx_002"), "s4", (368, 2, 3)),
    "hgnet": (lambda: timm.create_model("hgnetv2_b0"), "stages.3", (1024, 2, 3)),
    "shvit, of stride 64 at the end": (lambda: timm.create_model("shvit_s1"), "stages.1", (224, 2, 3)),
    "vit": (lambda: _vit(), "blocks.1", (8, 4, 6)),
    "vit with registers": (lambda: _vit(reg_tokens=4), "blocks.1", (8, 4, 6)),
    "vit without prefix": (lambda: _vit(class_token=False, global_pool="avg"), "blocks.1", (8, 4, 6)),
    "swin": (lambda: _swin(SwinTransformer), "layers.1", (16, 16, 24)),
    "swin v2": (lambda: _swin(SwinTransformerV2), "layers.1", (16, 16, 24)),
    "features, flattened": (lambda: timm.create_model("test_convnext", features_only=True), "stages_3", (64, 2, 3)),
    "features, chosen": (
        lambda: timm.create_model("test_resnet", features_only=True, out_indices=(1, 2, 3)),
        "layer3",
        (192, 4, 6),
    ),
    "features, hooked": (
        lambda: timm.create_model("test_resnet", features_only=True, feature_cls="hook", out_indices=(3, 4)),
        "body.layer4",
        (96, 2, 3),
    ),
    "features, of a vit": (
        lambda: timm.create_model("test_vit", img_size=(64, 96), features_only=True),
        "model.blocks.5",
        (64, 4, 6),
    ),
}


@pytest.mark.parametrize("name", STUDENTS)
def test_the_deepest_stage(name: str) -> None:
    build, path, shape = STUDENTS[name]
    student = build()
    taken = tapped(student, IMAGES)
    assert (taken.adapter, taken.path) == ("TimmAdapter", path)
    assert taken.feature_map.shape == (2, *shape)
    assert taken.share < 0.9
    if callable(getattr(student, "forward_intermediates", None)):
        student.eval()
        adapter, outputs = TimmAdapter(), []
        student.get_submodule(path).register_forward_hook(lambda module, args, output: outputs.append(output))
        expected = student.forward_intermediates(IMAGES, intermediates_only=True)
        read = adapter.feature_map(Tap(path, student.get_submodule(path)), outputs[0], IMAGES)
        assert any(given.shape == read.shape and torch.allclose(given, read) for given in expected)


def test_what_comes_before_a_norm_is_tapped() -> None:
    student = DenseNet(growth_rate=4, block_config=(1, 1), num_classes=4)
    assert student.feature_info[-1]["module"] == "features.norm5"
    assert tapped(student, IMAGES).path == "features.denseblock2"


def test_mvit_gives_tokens_with_their_grid() -> None:
    config = MultiScaleVitCfg(depths=(1, 1), embed_dim=(8, 16), num_heads=(1, 2), use_cls_token=True)
    taken = tapped(MultiScaleVit(config, img_size=(64, 64), num_classes=4), IMAGES[..., :64])
    assert (taken.path, taken.feature_map.shape) == ("stages.1", (2, 16, 8, 8))


def test_the_kind_of_module_tells_that_channels_come_last() -> None:
    square, images = torch.rand(1, 16, 16, 16), torch.rand(1, 3, 32, 32)
    adapter = TimmAdapter()
    swin = _swin(SwinTransformer)
    sam = VisionTransformerSAM(64, 16, embed_dim=8, depth=1, num_heads=2, num_classes=0)
    for module in (swin.get_submodule("layers.1"), swin.get_submodule("layers"), sam.get_submodule("blocks.0")):
        read = adapter.feature_map(Tap("stage", module), square, images)
        assert torch.equal(read, square.permute(0, 3, 1, 2))
    assert adapter.feature_map(Tap("stage", nn.Conv2d(3, 16, 1)), square, images) is square


def test_hiera_is_read_where_its_tokens_lie_in_order() -> None:
    student = Hiera((64, 96), embed_dim=8, num_heads=1, stages=(1, 1, 1, 1), mask_unit_size=(8, 8), num_classes=4)
    taken = tapped(student, IMAGES)
    assert (taken.path, taken.feature_map.shape) == ("blocks.3", (2, 64, 2, 3))
    with pytest.raises(CaptureError, match=r"tokens of stride 32: those of finer stages are not in the images' order"):
        attach(student, Wide(), tap="blocks.2", probe=IMAGES)


@pytest.mark.parametrize("name", ["coat_tiny", "twins_svt_small"])
def test_networks_whose_stages_do_not_run_are_left_to_the_inspection(name: str) -> None:
    with torch.device("meta"):
        assert find_adapter(timm.create_model(name)) is None
