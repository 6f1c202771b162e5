from __future__ import annotations

import pytest
import torch
from support.tapped import tapped

models = pytest.importorskip("segmentation_models_pytorch")

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "path", "channels"),
    [
        ("resnet18", "encoder.layer4", 512),
        ("timm-efficientnet-b0", "encoder.blocks.6", 320),
        ("efficientnet-b0", "encoder._blocks.15", 320),
        ("mobilenet_v2", "encoder.features.18", 1280),
        ("mit_b0", "encoder.block4.1", 256),
        ("tu-test_convnext", "encoder.model.stages_3", 64),
        ("tu-mobilenetv3_small_050", "encoder.model.blocks.5", 288),
        ("dpn68", "encoder", 832),
    ],
)
def test_the_last_stage_of_the_encoder(name: str, path: str, channels: int) -> None:
    torch.manual_seed(0)
    student = models.Unet(name, encoder_weights=None)
    taken = tapped(student, IMAGES)
    assert (taken.adapter, taken.path) == ("SegmentationModelsAdapter", path)
    assert taken.feature_map.shape == (2, channels, 2, 3)


def test_a_shallow_encoder_is_tapped_as_a_whole() -> None:
    student = models.FPN("resnet18", encoder_weights=None, encoder_depth=4)
    taken = tapped(student, IMAGES)
    assert (taken.path, taken.feature_map.shape) == ("encoder", (2, 256, 4, 6))


def test_the_vit_of_a_dpt() -> None:
    student = models.DPT("tu-vit_tiny_patch16_224", encoder_weights=None, dynamic_img_size=True)
    taken = tapped(student, IMAGES)
    assert (taken.path, taken.feature_map.shape) == ("encoder.model.blocks.11", (2, 192, 4, 6))
