"""The adapter of the networks of Ultralytics: YOLO for any task, and RT-DETR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vfmdistill.adapters.by_path import ByPathAdapter
from vfmdistill.adapters.protocol import Tap
from vfmdistill.errors import InputError

_BY_PATH = ByPathAdapter(())
_COARSEST = 32  # stride


class UltralyticsAdapter:
    """Taps the last layer of YOLO's backbone, and AIFI in RT-DETR.

    Of networks that go on to stride 64 it is the layer of stride 32 that the head sees. In training call the network
    with a tensor, or with the dict of a batch whose "img" is what the distiller is given.
    """

    def matches(self, student: nn.Module) -> bool:
        """Whether it is a network that is described by a configuration, or the class around it."""
        return _is_wrapper(student) or _layer(student) is not None

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        """Return the layer.

        Raises:
            InputError: this is the class around the network, which predicts and trains in its own way.
        """
        if _is_wrapper(student):
            raise InputError(
                f"student: a {type(student).__name__}, which runs the network inside in a way of its own; expected the "
                "network. Attach to its attribute model and train that."
            )
        layer = _layer(student)
        return () if layer is None else (Tap(f"model.{layer}", student.get_submodule(f"model.{layer}")),)

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        """Return the map (N, C, h, w), as the layers give it."""
        return _BY_PATH.feature_map(tap, output, images)


def _is_wrapper(student: nn.Module) -> bool:
    return any(kind.__module__ == "ultralytics.engine.model" for kind in type(student).__mro__)


def _layer(student: nn.Module) -> int | None:
    """Return the index of the layer to tap."""
    layers = getattr(student, "model", None)
    described: Any = getattr(student, "yaml", None)
    if not isinstance(layers, nn.Sequential) or not isinstance(described, dict) or not described.get("backbone"):
        return None
    over_the_deepest = [index for index, layer in enumerate(layers) if type(layer).__name__ == "AIFI"]
    if over_the_deepest:
        return over_the_deepest[-1]
    last = len(described["backbone"]) - 1
    strides = [int(stride) for stride in getattr(student, "stride", ())]
    if _COARSEST in strides and max(strides) > _COARSEST:
        seen: Any = layers[-1].f  # by the head: the index of a layer for each of the strides
        last = int(seen[strides.index(_COARSEST)])
    while last > 0 and not any(weight.ndim > 1 for weight in layers[last].parameters()):
        last -= 1  # a pooling
    return last
