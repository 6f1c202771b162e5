"""Adapters of torchvision's classifiers, detectors and segmentation networks.

torchvision's detectors bring the images to a size of their own inside. Faster R-CNN, Mask R-CNN, Keypoint R-CNN,
RetinaNet and FCOS keep the aspect ratio and pad on the right and below to a multiple of 32 pixels, so their map reaches
up to one cell of stride 32 beyond the image. SSD stretches the images to a square, of which the map shows all. Both fit
a batch of images of one size; give the detector the same images as the distiller. Detectors that draw another size for
each image, as Keypoint R-CNN does unless it is built with one ``min_size``, are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vfmdistill.adapters.by_path import ByPathAdapter
from vfmdistill.adapters.layouts import channels_first
from vfmdistill.adapters.protocol import Tap
from vfmdistill.errors import InputError

_BY_PATH = ByPathAdapter(())

_SSD_STAGES = ("backbone.extra.", "backbone.features")  # paths of no other detector's stages

# The last stage before the pooling, by class; ".*" is the last of its children that has weights to mix channels with.
_LAST_STAGES = {
    "AlexNet": "features.*",
    "ConvNeXt": "features.*",
    "DenseNet": "features.*",
    "EfficientNet": "features.*",
    "GoogLeNet": "inception5b",
    "Inception3": "Mixed_7c",
    "MaxVit": "blocks.*",
    "MNASNet": "layers.*",
    "MobileNetV2": "features.*",
    "MobileNetV3": "features.*",
    "RegNet": "trunk_output.*",
    "ResNet": "layer4",
    "ShuffleNetV2": "conv5",
    "SqueezeNet": "features.*",
    "SwinTransformer": "features.*",
    "VGG": "features.*",
    "VisionTransformer": "encoder.layers.*",
}


class TorchvisionClassifier:
    """Taps the last stage before the pooling of torchvision's classifiers."""

    def matches(self, student: nn.Module) -> bool:
        """Whether the last stage of this kind of classifier is known, and there."""
        return _last_stage(student) is not None

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        """Return the last stage; of VGG, AlexNet and the ViTs the last layer, which are not built in stages."""
        stage = _last_stage(student)
        return () if stage is None else (stage,)

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        """Return the map (N, C, h, w): Swin's channels last, and the ViTs' tokens without the class token."""
        if isinstance(output, Tensor) and output.ndim == 4 and _is_swin(tap.module):
            return channels_first(output)
        return _BY_PATH.feature_map(tap, output, images)


class TorchvisionDetector:
    """Taps the deepest stage of the backbone that the heads of torchvision's detectors see, at stride 32 or less."""

    def matches(self, student: nn.Module) -> bool:
        """Whether the detector has a backbone as torchvision's builders make them."""
        return _detector_stage(student) is not None

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        """Return the stage.

        Raises:
            InputError: the detector draws a size for each image, so the maps of a batch do not show the same part.
        """
        sizes = getattr(getattr(student, "transform", None), "min_size", ())
        if len(set(sizes)) > 1 and getattr(student.transform, "fixed_size", None) is None:
            raise InputError(
                f"the detector resizes each image in training to one of {list(sizes)} pixels, drawn at random, and "
                "pads the batch, so its maps do not show the images alike. Build it with one min_size and resize the "
                "images in the data loader, or pass tap= to align them as they are."
            )
        path = _detector_stage(student)
        return () if path is None else (Tap(path, student.get_submodule(path)),)

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        """Return the map (N, C, h, w); of the dict of a backbone's levels the deepest but those added for the heads."""
        if isinstance(output, Mapping):
            levels = {name: level for name, level in output.items() if name not in ("pool", "p6", "p7")}
            output = levels[next(reversed(levels))] if levels else output
        if isinstance(output, Tensor) and output.ndim == 4 and tap.path.startswith(_SSD_STAGES):
            return output  # of the stretched images, in whose aspect ratio it need not be
        return _BY_PATH.feature_map(tap, output, images)


class TorchvisionSegmenter:
    """Taps the deepest stage of the backbone of FCN, DeepLabV3 and LR-ASPP, of stride 8 or 16."""

    def matches(self, student: nn.Module) -> bool:
        """Whether the backbone says which of its stages the head sees."""
        return _level(getattr(student, "backbone", None), ("out", "high")) is not None

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        """Return the stage that the head sees."""
        name = _level(student.backbone, ("out", "high"))
        return () if name is None else (Tap(f"backbone.{name}", student.get_submodule(f"backbone.{name}")),)

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        """Return the map (N, C, h, w); of the backbone's dict the one that the head sees."""
        if isinstance(output, Mapping):
            output = output.get("high", output.get("out", output))
        return _BY_PATH.feature_map(tap, output, images)


def _last_stage(student: nn.Module) -> Tap | None:
    homes = {kind.__name__: kind.__module__ for kind in type(student).__mro__}
    name = next((name for name in homes if name in _LAST_STAGES and homes[name].startswith("torchvision.")), None)
    if name is None:
        return None
    path = _LAST_STAGES[name].removesuffix(".*")
    try:
        stage = student.get_submodule(path)
    except AttributeError:
        return None
    children = [Tap(f"{path}.{child_name}", child) for child_name, child in stage.named_children()]
    candidates = [Tap(path, stage)] if path == _LAST_STAGES[name] else children
    mixing = [tap for tap in candidates if any(weight.ndim > 1 for weight in tap.module.parameters())]
    return mixing[-1] if mixing else None


def _is_swin(module: nn.Module) -> bool:
    """Whether a module is a part of a Swin transformer, or a row of such parts."""
    parts = [module, *(module.children() if isinstance(module, nn.Sequential) else ())]
    return any(type(part).__module__ == "torchvision.models.swin_transformer" for part in parts)


def _detector_stage(student: nn.Module) -> str | None:
    backbone = getattr(student, "backbone", None)
    kind = type(backbone).__name__
    if kind == "SSDFeatureExtractorVGG":
        return "backbone.extra.1"  # the third level; those that follow are coarser than stride 32
    if kind == "SSDLiteFeatureExtractorMobileNet":
        return "backbone.features.1"
    body = getattr(backbone, "body", None)
    name = _level(body, ())
    return None if name is None else f"backbone.body.{name}"


def _level(getter: object, names: tuple[str, ...]) -> str | None:
    """Return the child of an IntermediateLayerGetter whose level has one of the names, or for no name the last."""
    levels = getattr(getter, "return_layers", None)
    if not isinstance(getter, nn.ModuleDict) or not levels:
        return None
    if not names:
        return str(next(reversed(levels)))
    return next((str(child) for child, level in levels.items() if level in names), None)
