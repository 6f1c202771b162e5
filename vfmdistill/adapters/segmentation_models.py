"""The adapter of the networks of segmentation-models-pytorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vfmdistill.adapters.by_path import ByPathAdapter
from vfmdistill.adapters.protocol import Tap
from vfmdistill.adapters.timm import TimmAdapter

_BY_PATH = ByPathAdapter(())
_TIMM = TimmAdapter()
_FULL_DEPTH = 5  # stages: stride 32

# The last stage by the class of the encoder; ".*" is its last child that has weights to mix channels with.
_LAST_STAGES = {
    "DenseNetEncoder": ("features.*",),
    "EfficientNetEncoder": ("blocks.*", "_blocks.*"),
    "InceptionV4Encoder": ("features.*",),
    "MixVisionTransformerEncoder": ("block4.*",),
    "MobileNetV2Encoder": ("features.*",),
    "MobileOne": ("stage4",),
    "ResNetEncoder": ("layer4",),
    "SENetEncoder": ("layer4",),
    "SkNetEncoder": ("layer4",),
}


class SegmentationModelsAdapter:
    """Taps the encoder's last stage, or the encoder as a whole where its stages are not known."""

    def matches(self, student: nn.Module) -> bool:
        """Whether the network has an encoder."""
        return isinstance(getattr(student, "encoder", None), nn.Module)

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        """Return the stage, or the encoder."""
        path = _stage(student.get_submodule("encoder"))
        return (Tap(path, student.get_submodule(path)),)

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        """Return the map (N, C, h, w); of an encoder's list of maps the deepest of stride 32 or less."""
        reader = _TIMM if tap.path.startswith("encoder.model.") else _BY_PATH
        return reader.feature_map(tap, output, images)


def _stage(encoder: nn.Module) -> str:
    wrapped = getattr(encoder, "model", None)  # of timm
    if isinstance(wrapped, nn.Module) and _TIMM.matches(wrapped):
        return f"encoder.model.{_TIMM.taps(wrapped)[0].path}"
    if getattr(encoder, "_depth", _FULL_DEPTH) == _FULL_DEPTH:
        modules = dict(encoder.named_modules())
        for stage in _LAST_STAGES.get(type(encoder).__name__, ()):
            path = stage.removesuffix(".*")
            if path not in modules:
                continue
            if path == stage:
                return f"encoder.{path}"
            children = modules[path].named_children()
            mixing = [name for name, child in children if any(weight.ndim > 1 for weight in child.parameters())]
            return f"encoder.{path}.{mixing[-1]}"
    return "encoder"
