"""The adapter of the vision models of transformers: detectors, segmentation networks, classifiers and backbones.

Models are known by the classes that they are built of, so it does not matter which head they carry, or where in the
model a release keeps its layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vfmdistill.adapters.by_path import ByPathAdapter
from vfmdistill.adapters.layouts import rounded_up_grid, tokens_to_map, unreadable
from vfmdistill.adapters.protocol import Tap

_BY_PATH = ByPathAdapter(())
_STRIDES = (4, 8, 16, 32)

# AIFI, the transformer over the deepest map, before the levels are fused; Encoder is its name up to transformers 4.
_INTRA_SCALE = ("RTDetr", "RTDetrV2", "DFine", "Deimv2")
_ENCODERS = (
    *(f"{name}AIFILayer" for name in _INTRA_SCALE),
    *(f"{name}Encoder" for name in _INTRA_SCALE),
    "DetrEncoderLayer",
    "ConditionalDetrEncoderLayer",
    "DabDetrEncoderLayer",
    "TableTransformerEncoderLayer",
)
# The layers over the tokens of all levels, the finest first.
_OVER_LEVELS = ("DeformableDetrEncoderLayer",)
# What brings the maps of a plain ViT, of stride 14 or 16, to the width of the decoder.
_PROJECTORS = ("RfDetrScaleProjector", "LwDetrScaleProjector")
_STAGES = (
    "ConvNextStage",
    "ConvNextV2Stage",
    "DINOv3ConvNextStage",
    "HGNetV2Stage",
    "RegNetStage",
    "ResNetStage",
    "SegformerStage",
    "SegformerLayer",  # has stages from transformers 5 on
    "SwinStage",
    "Swinv2Stage",
)
_VIT_LAYERS = (
    "BeitLayer",
    "DeiTLayer",
    "Dinov2Layer",
    "Dinov2WithRegistersLayer",
    "DINOv3ViTLayer",
    "ViTLayer",
)
_KINDS = (*_ENCODERS, *_OVER_LEVELS, *_PROJECTORS, *_STAGES, *_VIT_LAYERS)


class TransformersAdapter:
    """Taps a detector's encoder over the deepest map, else the backbone's last stage, or the last layer of a ViT."""

    def matches(self, student: nn.Module) -> bool:
        """Whether the model holds modules of a kind that is known."""
        return _last(student) is not None

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        """Return the last module of the kind that is read; encoders go before the backbones that feed them."""
        tap = _last(student)
        return () if tap is None else (tap,)

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        """Return the map (N, C, h, w); of Deformable DETR's levels that of stride 32, or the deepest if none has it.

        Raises:
            CaptureError: there is no such map in the output.
        """
        if isinstance(output, Mapping):
            output = output.get("last_hidden_state", output)
        kind = type(tap.module).__name__
        if kind not in _KINDS:
            return _BY_PATH.feature_map(tap, output, images)
        # What goes on to the next layer comes first; attention weights and earlier states may stand behind it.
        hidden = output[0] if isinstance(output, list | tuple) and output else output
        if isinstance(hidden, Tensor) and hidden.ndim == 3:
            if kind in _OVER_LEVELS:
                return _of_levels(tap, hidden, images)
            # ViTs leave out what does not fill a patch, the others fill it up.
            grids = () if kind in _VIT_LAYERS else (rounded_up_grid(images, stride) for stride in _STRIDES)
            for grid in grids:
                if grid[0] * grid[1] == hidden.shape[1]:
                    return tokens_to_map(hidden, grid)
        return _BY_PATH.feature_map(tap, hidden, images)


def _last(student: nn.Module) -> Tap | None:
    """Return the last module of the first kind that the student has."""
    by_kind = {type(module).__name__: Tap(path, module) for path, module in student.named_modules()}
    return next((by_kind[kind] for kind in _KINDS if kind in by_kind), None)


def _of_levels(tap: Tap, tokens: Tensor, images: Tensor) -> Tensor:
    """(N, tokens of all levels, C) -> (N, C, h, w), the level of stride 32, from strides 8 on; of one level that."""
    finest = 8
    for count in range(1, 6):
        strides = [32] if count == 1 else [finest * 2**level for level in range(count)]
        grids = [rounded_up_grid(images, stride) for stride in strides]
        sizes = [rows * columns for rows, columns in grids]
        if sum(sizes) == tokens.shape[1]:
            level = strides.index(32) if 32 in strides else count - 1
            return tokens_to_map(tokens, grids[level], sum(sizes[:level]))
    shape = f"a tensor of shape {tuple(tokens.shape)}"
    raise unreadable(tap, shape, images, "the tokens of levels of stride 8, 16, 32 and so on, or of stride 32 alone")
