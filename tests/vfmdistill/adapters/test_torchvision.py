from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.students import Wide
from support.tapped import tapped
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection, segmentation
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.models.feature_extraction import create_feature_extractor

import vfmdistill
from vfmdistill import InputError, attach
from vfmdistill.adapters import Tap, find_adapter
from vfmdistill.adapters.torchvision import TorchvisionClassifier

BOXES = {"boxes": torch.tensor([[4.0, 8.0, 60.0, 56.0]]), "labels": torch.tensor([1])}


@pytest.fixture(autouse=True)
def _seeded_and_without_warnings() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about how weights are drawn and layers are frozen
        yield


@pytest.mark.parametrize(
    ("name", "path", "shape"),
    [
        ("densenet121", "features.denseblock4", (1024, 2, 3)),
        ("efficientnet_b0", "features.8", (1280, 2, 3)),
        ("googlenet", "inception5b", (1024, 2, 3)),
        ("mnasnet0_5", "layers.14", (1280, 2, 3)),
        ("mobilenet_v2", "features.18", (1280, 2, 3)),
        ("mobilenet_v3_small", "features.12", (576, 2, 3)),
        ("regnet_x_400mf", "trunk_output.block4", (400, 2, 3)),
        ("resnet18", "layer4", (512, 2, 3)),
        ("shufflenet_v2_x0_5", "conv5", (1024, 2, 3)),
        ("squeezenet1_1", "features.12", (512, 3, 5)),
    ],
)
def test_the_last_stage_of_convolutional_classifiers(name: str, path: str, shape: tuple[int, ...]) -> None:
    student = getattr(models, name)(num_classes=4, **({"aux_logits": False} if name == "googlenet" else {}))
    taken = tapped(student, torch.rand(2, 3, 64, 96))
    assert (taken.adapter, taken.path) == ("TorchvisionClassifier", path)
    assert taken.feature_map.shape == (2, *shape)
    assert taken.share < 0.9


def test_the_last_layer_of_vgg_is_read_before_its_relu_writes_into_it() -> None:
    student = models.VGG(models.vgg.make_layers([8, "M", 8, "M", 8, "M", 8, "M", 16, "M"], False), 4, False)
    student.classifier = nn.Flatten()
    images = torch.rand(2, 3, 64, 96)
    with vfmdistill.attach(student, nn.Conv2d(3, 4, 16, 16), modulator=1.0) as distiller:
        student(images)
        (feature_map,) = distiller._student_maps.take(images)
    assert [tap.path for tap in distiller.taps] == ["features.12"]
    assert feature_map.shape == (2, 16, 4, 6)
    assert feature_map.min() < 0


def test_convnext() -> None:
    settings = [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)]
    taken = tapped(models.ConvNeXt(settings, num_classes=4), torch.rand(2, 3, 64, 96))
    assert (taken.path, taken.feature_map.shape) == ("features.3", (2, 16, 8, 12))


@pytest.mark.parametrize("version", ["", "V2"])
def test_channels_of_swin_come_last(version: str) -> None:
    swin = models.swin_transformer
    student = models.SwinTransformer(
        [4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=4, stochastic_depth_prob=0.0,
        block=getattr(swin, f"SwinTransformerBlock{version}"),
        downsample_layer=getattr(swin, f"PatchMerging{version}"),
    )  # fmt: skip
    images = torch.rand(2, 3, 64, 96)
    taken = tapped(student, images)
    assert (taken.path, taken.feature_map.shape) == ("features.3", (2, 16, 8, 12))
    expected = student.features(images)
    assert torch.equal(taken.feature_map, expected.permute(0, 3, 1, 2))
    square = torch.rand(1, 16, 16, 16)  # rows, columns, channels: the kind of module tells
    read = TorchvisionClassifier().feature_map(Tap("", student.features[3]), square, torch.rand(1, 3, 128, 128))
    assert torch.equal(read, square.permute(0, 3, 1, 2))


def test_the_class_token_of_vits_is_dropped() -> None:
    student = models.VisionTransformer(64, 16, 2, 2, 8, 16, num_classes=4)
    outputs: list[Tensor] = []
    student.encoder.layers[-1].register_forward_hook(lambda module, args, output: outputs.append(output))
    taken = tapped(student, torch.rand(2, 3, 64, 64))
    assert taken.path == "encoder.layers.encoder_layer_1"
    assert taken.feature_map.shape == (2, 8, 4, 4)
    assert torch.equal(taken.feature_map[:, :, 1, 2], outputs[0][:, 1 + 4 + 2])


def test_maxvit() -> None:
    student = models.MaxVit((64, 64), 8, 2, [8, 16], [1, 1], 4, 0.0, num_classes=4)
    taken = tapped(student, torch.rand(2, 3, 64, 64))
    assert (taken.path, taken.feature_map.shape) == ("blocks.1", (2, 16, 8, 8))


def _detector(name: str, **options: Any) -> nn.Module:
    student: nn.Module = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=3, **options)
    return student


@pytest.mark.parametrize(
    ("name", "path", "shape"),
    [
        ("fasterrcnn_mobilenet_v3_large_fpn", "backbone.body.16", (960, 3, 4)),
        ("maskrcnn_resnet50_fpn", "backbone.body.layer4", (2048, 3, 4)),
        ("retinanet_resnet50_fpn", "backbone.body.layer4", (2048, 3, 4)),
        ("fcos_resnet50_fpn", "backbone.body.layer4", (2048, 3, 4)),
    ],
)
def test_detectors_pad_by_less_than_a_cell(name: str, path: str, shape: tuple[int, ...]) -> None:
    student = _detector(name, min_size=80, max_size=200, trainable_backbone_layers=5)
    images = torch.rand(2, 3, 72, 108)  # becomes 80 × 120 and is padded to 96 × 128
    targets = [{**BOXES, "masks": torch.ones(1, 72, 108, dtype=torch.uint8)} for _ in images]
    taken = tapped(student, images, lambda: student(list(images), targets))
    assert (taken.adapter, taken.path) == ("TorchvisionDetector", path)
    assert taken.feature_map.shape == (2, *shape)
    assert taken.share < 0.5


@pytest.mark.parametrize(
    ("name", "path", "channels"),
    [("ssd300_vgg16", "backbone.extra.1", 512), ("ssdlite320_mobilenet_v3_large", "backbone.features.1", 480)],
)
def test_ssd_shows_all_of_the_stretched_image(name: str, path: str, channels: int) -> None:
    student = _detector(name)
    images = torch.rand(2, 3, 64, 160)
    taken = tapped(student, images, lambda: student(list(images), [BOXES, BOXES]))
    assert (taken.path, taken.feature_map.shape) == (path, (2, channels, 10, 10))


def test_the_deepest_level_of_a_backbone_leaves_out_those_added_for_the_heads() -> None:
    student = _detector("fasterrcnn_mobilenet_v3_large_fpn", min_size=64, max_size=96)
    adapter = find_adapter(student)
    assert adapter is not None
    images = torch.rand(2, 3, 128, 192)
    levels = student.get_submodule("backbone")(images)
    assert list(levels) == ["0", "1", "pool"]
    assert adapter.feature_map(Tap("backbone", nn.Identity()), levels, images) is levels["1"]


def test_detectors_that_draw_their_sizes_are_refused() -> None:
    student = _detector("fcos_resnet50_fpn", min_size=(64, 96), max_size=200)
    with pytest.raises(InputError, match=r"resizes each image in training to one of \[64, 96\] .* one min_size"):
        attach(student, Wide())
    with attach(student, Wide(), tap="backbone.body.layer4") as distiller:  # on the user's responsibility
        assert [injector.student_dim for injector in distiller.injectors.values()] == [2048]


def test_a_backbone_of_ones_own_is_left_to_the_inspection() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 8, 16, 16))
    backbone.out_channels = 8  # type: ignore[assignment]
    assert find_adapter(FasterRCNN(backbone, num_classes=2, min_size=64, max_size=64)) is None


@pytest.mark.parametrize(
    ("name", "path", "shape"),
    [
        ("fcn_resnet50", "backbone.layer4", (2048, 8, 12)),
        ("deeplabv3_mobilenet_v3_large", "backbone.16", (960, 4, 6)),
        ("lraspp_mobilenet_v3_large", "backbone.16", (960, 4, 6)),
    ],
)
def test_segmentation(name: str, path: str, shape: tuple[int, ...]) -> None:
    student = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=3)
    images = torch.rand(2, 3, 64, 96)
    taken = tapped(student, images)
    assert (taken.adapter, taken.path) == ("TorchvisionSegmenter", path)
    assert taken.feature_map.shape == (2, *shape)
    adapter = find_adapter(student)
    assert adapter is not None
    levels = student.backbone(images)
    read = adapter.feature_map(Tap("backbone", student.backbone), levels, images)
    assert read is levels["high" if "high" in levels else "out"]


def test_what_torchvision_does_not_classify_with_is_not_matched() -> None:
    assert find_adapter(models.video.r3d_18()) is None
    assert find_adapter(create_feature_extractor(models.resnet18(), ["layer3"])) is None
    assert find_adapter(nn.Sequential(models.resnet18())) is None


def test_a_class_of_ones_own_that_inherits_is_matched() -> None:
    class Mine(models.ResNet):
        pass

    student = Mine(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)
    assert tapped(student, torch.rand(2, 3, 64, 64)).path == "layer4"
    with attach(student, Wide()) as distiller:
        assert [tap.path for tap in distiller.taps] == ["layer4"]
    student.layer4 = nn.Sequential()  # cut off
    assert find_adapter(student) is None
    del student.layer4
    assert find_adapter(student) is None
