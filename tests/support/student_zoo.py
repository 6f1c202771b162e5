"""One table of small students of every kind that people train: how each is built, and how it gives a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from support import odd_students as odd
from timm.models.densenet import DenseNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision import models
from torchvision.models import detection, segmentation
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

import detectors

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
_OBJECTS = [
    {"labels": torch.tensor([1, 0]), "boxes": torch.tensor([[0.3, 0.4, 0.4, 0.6], [0.6, 0.5, 0.3, 0.3]])},
    {"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.8, 0.7]])},
]


def tensors_in(outputs: Any) -> list[Tensor]:
    """Return the tensors in nested outputs, in order."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [t for part in outputs for t in tensors_in(part)] if isinstance(outputs, list | tuple) else []


def forward(student: nn.Module, images: Tensor) -> Tensor:
    """Return a loss of everything that the student puts out."""
    trained = [tensor for tensor in tensors_in(student(images)) if tensor.requires_grad]
    return torch.stack([tensor.square().mean() for tensor in trained]).sum()


def with_criterion(student: nn.Module, images: Tensor) -> Tensor:
    """Return the loss of a detector of ours."""
    assert isinstance(student, detectors.Detector)
    losses = detectors.build_criterion(student.spec, num_classes=3)(student(images, _OBJECTS), _OBJECTS)
    return torch.stack(list(losses.values())).sum()


def with_targets(student: nn.Module, images: Tensor) -> Tensor:
    """Return the loss of a detector of torchvision, which computes it itself."""
    boxes = torch.tensor([[4.0, 8.0, 60.0, 56.0]])
    masks = torch.ones(1, *images.shape[2:], dtype=torch.uint8)
    losses = student(list(images), [{"boxes": boxes, "labels": torch.tensor([1]), "masks": masks} for _ in images])
    return torch.stack(list(losses.values())).sum()


@dataclass(frozen=True)
class Row:
    """A student of the table.

    Attributes:
        build: makes it, of numbers from the global RNG.
        after: a module that only runs after the tap.
        loss: a training forward and its loss.
        images: what it is trained on.
        tap: as for `attach`.
        sized: it takes images of this size only.
        chosen: the taps that are expected, where no adapter knows the student.
    """

    build: Callable[[], nn.Module]
    after: str
    loss: Callable[[nn.Module, Tensor], Tensor] = forward
    images: Tensor = IMAGES
    tap: str | Sequence[str] | None = None
    sized: bool = False
    chosen: tuple[str, ...] = ()


def _ours(name: str, stages: tuple[int, ...]) -> Row:
    sizes: dict[str, Any] = {
        "backbone": "test_resnet", "backbone_stages": stages, "encoder_dim": 16, "encoder_heads": 2,
        "encoder_feedforward": 16, "encoder_depth": 0.34, "decoder_dim": 16, "decoder_heads": 2,
        "decoder_feedforward": 16, "decoder_layers": 2, "num_queries": 10, "num_denoising": 4,
    }  # fmt: skip
    return Row(lambda: detectors.build(name, num_classes=3, input_size=(64, 96), **sizes), "decoder", with_criterion)


def _timm(name: str, after: str, **options: Any) -> Row:
    return Row(lambda: timm.create_model(name, pretrained=False, **options), after)


def _vit() -> nn.Module:
    return VisionTransformer((64, 96), 16, embed_dim=8, depth=2, num_heads=2, num_classes=4, reg_tokens=2)


def _timm_swin() -> nn.Module:
    student: nn.Module = SwinTransformer(
        (64, 96), 4, embed_dim=8, depths=(1, 1, 1), num_heads=(1, 2, 2), window_size=2, num_classes=4
    )
    return student


class _OnFeatures(nn.Module):
    """A head on the maps that timm hands over in a list."""

    def __init__(self) -> None:
        super().__init__()
        backbone: Any = timm.create_model("test_convnext", pretrained=False, features_only=True, out_indices=(1, 2, 3))
        self.backbone = backbone
        self.head = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in backbone.feature_info.channels())

    def forward(self, images: Tensor) -> list[Tensor]:
        return [head(level) for head, level in zip(self.head, self.backbone(images), strict=True)]


def _torchvision(name: str, after: str, **options: Any) -> Row:
    return Row(lambda: getattr(models, name)(num_classes=4, **options), after)


def _resnet10() -> models.ResNet:
    return models.ResNet(models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)


def _torchvision_vit() -> nn.Module:
    return models.VisionTransformer(64, 16, 2, 2, 8, 16, dropout=0.1, num_classes=4)


def _torchvision_swin() -> nn.Module:
    return models.SwinTransformer([4, 4], 8, [1, 1, 1], [1, 2, 2], [2, 2], stochastic_depth_prob=0.5, num_classes=4)


def _torchvision_convnext() -> nn.Module:
    setting = models.convnext.CNBlockConfig
    return models.ConvNeXt([setting(8, 16, 1), setting(16, 24, 1), setting(24, None, 2)], 0.2, num_classes=4)


def _detector(kind: Callable[..., nn.Module], after: str) -> Row:
    def build() -> nn.Module:
        levels = {f"layer{stage}": str(stage) for stage in (1, 2, 3, 4)}
        backbone = BackboneWithFPN(_resnet10(), levels, [64, 128, 256, 512], 64)
        return kind(backbone, num_classes=3, min_size=64, max_size=96)

    return Row(build, after, with_targets)


def _faster_rcnn(backbone: nn.Module, num_classes: int, **sizes: int) -> nn.Module:
    head, predictor = TwoMLPHead(64 * 7 * 7, 16), FastRCNNPredictor(16, num_classes)
    return detection.FasterRCNN(backbone, box_head=head, box_predictor=predictor, rpn_post_nms_top_n_train=20, **sizes)


def _ssdlite() -> nn.Module:
    student: nn.Module = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    student.transform = GeneralizedRCNNTransform(64, 64, [0.5] * 3, [0.5] * 3, size_divisible=1, fixed_size=(64, 64))
    return student


def _segmenter(name: str, after: str) -> Row:
    return Row(lambda: getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=3), after)


def _transformers(name: str, after: str) -> Row:
    def build() -> nn.Module:
        from support.transformers_students import STUDENTS, tiny_student  # skips where it is not installed

        return tiny_student(*STUDENTS[name][:3])

    return Row(build, after, sized=True)


def _sequential() -> nn.Module:
    body = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
    return nn.Sequential(nn.Conv2d(3, 8, 16, 16), body, nn.Flatten(), nn.Dropout(), nn.Linear(8 * 4 * 6, 4))


ZOO: dict[str, Row] = {
    "ours, rtdetrv4": _ours("rtdetrv4_n", (3, 4)),
    "ours, deim": _ours("deim_n", (3, 4)),
    "ours, dfine": _ours("dfine_n", (3, 4)),
    "ours, rtdetr": _ours("rtdetr_r18", (2, 3, 4)),
    "ours, rtdetrv2": _ours("rtdetrv2_r18", (2, 3, 4)),
    "ours, deim on rtdetrv2": _ours("deim_rtdetrv2_r18", (2, 3, 4)),
    "timm, resnet": _timm("test_resnet", "fc"),
    "timm, convnext": _timm("test_convnext", "head.fc"),
    "timm, efficientnet": _timm("test_efficientnet", "conv_head", drop_path_rate=0.2),
    "timm, mobilenet": _timm("mobilenetv4_conv_small_050", "conv_head"),
    "timm, byobnet": _timm("test_byobnet", "head.fc"),
    "timm, densenet": Row(lambda: DenseNet(growth_rate=4, block_config=(1, 1, 1, 1), num_classes=4), "classifier"),
    "timm, features under a head": Row(_OnFeatures, "head"),
    "timm, vit": Row(_vit, "head", sized=True),
    "timm, swin": Row(_timm_swin, "head.fc", sized=True),
    "torchvision, resnet": Row(_resnet10, "fc"),
    "torchvision, mobilenet": _torchvision("mobilenet_v3_small", "classifier"),
    "torchvision, shufflenet": _torchvision("shufflenet_v2_x0_5", "fc"),
    "torchvision, vit": Row(_torchvision_vit, "heads", images=IMAGES[..., :64], sized=True),
    "torchvision, swin": Row(_torchvision_swin, "head"),
    "torchvision, convnext": Row(_torchvision_convnext, "classifier"),
    "torchvision, faster r-cnn": _detector(_faster_rcnn, "roi_heads"),
    "torchvision, retinanet": _detector(detection.RetinaNet, "head"),
    "torchvision, fcos": _detector(detection.FCOS, "backbone.fpn"),
    "torchvision, ssdlite": Row(_ssdlite, "head", with_targets),
    "torchvision, lraspp": _segmenter("lraspp_mobilenet_v3_large", "classifier"),
    "torchvision, deeplab": _segmenter("deeplabv3_mobilenet_v3_large", "classifier"),
    "transformers, rt-detr": _transformers("rt-detr", "model.decoder"),
    "transformers, rt-detr v2": _transformers("rt-detr v2", "model.decoder"),
    "transformers, d-fine": _transformers("d-fine", "model.decoder"),
    "transformers, detr": _transformers("detr", "model.decoder"),
    "transformers, deformable detr": _transformers("deformable detr", "model.decoder"),
    "transformers, rf-detr": _transformers("rf-detr", "model.decoder"),
    "transformers, segformer": _transformers("segformer", "decode_head"),
    "transformers, vit": _transformers("vit", "classifier"),
    "transformers, swin": _transformers("swin", "classifier"),
    "transformers, convnext": _transformers("convnext", "classifier"),
    "transformers, dinov3": _transformers("dinov3", "norm"),
    "odd, maps (N, h, w, C)": Row(odd.ChannelsLast, "head", chosen=("blocks",)),
    "odd, tokens behind a class token": Row(odd.Tokens, "head", chosen=("layers.1",)),
    "odd, dict of maps": Row(lambda: odd.OnPyramid("dict"), "head", chosen=("backbone.coarse",)),
    "odd, dict of maps, tapped": Row(lambda: odd.OnPyramid("dict"), "head", tap="backbone"),
    "odd, list of maps, tapped": Row(lambda: odd.OnPyramid("list"), "head", tap="backbone"),
    "odd, tuple of maps, tapped": Row(lambda: odd.OnPyramid("tuple"), "head", tap="backbone"),
    "odd, several taps": Row(lambda: odd.OnPyramid("list"), "head", tap=["backbone.fine", "backbone.coarse"]),
    "odd, shared modules": Row(odd.Shared, "head", chosen=("block",)),
    "odd, its own adapter": Row(odd.OwnAdapter, "head", chosen=("mix",)),
    "odd, frozen backbone": Row(odd.Frozen, "head", chosen=("neck",)),
    "odd, buffers that change": Row(odd.Remembers, "head", chosen=("body.1",)),
    "odd, reparametrised": Row(odd.Reparametrised, "head", chosen=("body",)),
    "odd, hooks of its own": Row(odd.Hooked, "head", chosen=("body",)),
    "odd, u-net": Row(odd.UNet, "up", chosen=("middle",)),
    "odd, sequential": Row(_sequential, "4", sized=True, chosen=("1",)),
}
