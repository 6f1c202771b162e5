"""The adapter of timm's networks: classifiers, backbones without a head, and those made with features_only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vfmdistill.adapters.by_path import ByPathAdapter
from vfmdistill.adapters.layouts import channels_first, unreadable, whole_stride_grid
from vfmdistill.adapters.protocol import Tap

_BY_PATH = ByPathAdapter(())
_COARSEST = 32  # stride

# Modules that put out maps (N, h, w, C); rows of them do too.
_CHANNELS_LAST = frozenset(
    {
        "hieradet_sam2.MultiScaleBlock",
        "mambaout.GatedConvBlock",
        "mambaout.MambaOutStage",
        "sequencer.Sequencer2dBlock",
        "sequencer.Sequencer2dStage",
        "swin_transformer.PatchMerging",
        "swin_transformer.SwinTransformerBlock",
        "swin_transformer.SwinTransformerStage",
        "swin_transformer_v2.PatchMerging",
        "swin_transformer_v2.SwinTransformerV2Block",
        "swin_transformer_v2.SwinTransformerV2Stage",
        "vision_transformer_sam.Block",
        "volo.Outlooker",
        "volo.Transformer",
    }
)


class TimmAdapter:
    """Taps the deepest stage of stride 32 or less that a network's ``feature_info`` names; of a ViT its last block.

    Of a network made with ``features_only`` that is one of the stages which it returns.
    """

    def matches(self, student: nn.Module) -> bool:
        """Whether the network says what its stages are, and they are modules that run."""
        return _stage(student) is not None

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        """Return the stage; where it is named by a norm, a pooling or an activation, what comes before with weights."""
        path = _stage(student)
        return () if path is None else (Tap(path, student.get_submodule(path)),)

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        """Return the map (N, C, h, w): channels that come last, tokens, and tokens behind prefix tokens are brought so.

        Raises:
            CaptureError: there is no such map in the output.
        """
        kinds = set(_kinds(tap.module))
        if isinstance(output, Tensor) and output.ndim == 4 and kinds & _CHANNELS_LAST:
            return channels_first(output)
        if "hiera.HieraBlock" in kinds and isinstance(output, Tensor):
            _check_order(tap, output, images)
        return _BY_PATH.feature_map(tap, output, images)


def _stage(student: nn.Module) -> str | None:
    """Return the path of the tap."""
    modules = dict(student.named_modules())
    stages = [stage for stage in _stages(student) if stage["reduction"] <= _COARSEST]
    if not stages:
        return None
    name = str(stages[-1]["module"])
    # Networks made with features_only are flattened or wrapped; MViT says "block" of its stages.
    spellings = (name, name.replace(".", "_", 1), f"body.{name}", f"model.{name}", name.replace("block.", "stages."))
    path = next((spelling for spelling in spellings if spelling in modules), None)
    if path is None or isinstance(modules[path], nn.ModuleList):
        return None
    return _with_weights(path, modules)


def _stages(student: nn.Module) -> list[Mapping[str, Any]]:
    """Return what a network says of the stages that it puts out, finest first."""
    stages: Any = getattr(student, "feature_info", None)
    if callable(getattr(stages, "get_dicts", None)):
        stages = stages.get_dicts()
    return [stage for stage in stages if {"module", "reduction"} <= stage.keys()] if isinstance(stages, list) else []


def _with_weights(path: str, modules: Mapping[str, nn.Module]) -> str | None:
    """Return the path, or that of the nearest module before it that has weights to mix channels with."""
    if _mixes(modules[path]):
        return path
    parent, _, name = path.rpartition(".")
    siblings = list(modules[parent].named_children())
    while siblings and siblings.pop()[0] != name:
        pass
    name, module = next((sibling for sibling in reversed(siblings) if _mixes(sibling[1])), ("", None))
    if isinstance(module, nn.Sequential):  # of stages
        name = f"{name}.{[child for child, stage in module.named_children() if _mixes(stage)][-1]}"
    return None if module is None else f"{parent}.{name}".lstrip(".")


def _mixes(module: nn.Module) -> bool:
    return any(weight.ndim > 1 for weight in module.parameters())


def _kinds(module: nn.Module) -> Iterator[str]:
    """Yield the classes, with the file in timm, of a module and of those that it is a row of."""
    for part in (module, *(module.children() if isinstance(module, nn.Sequential) else ())):
        kind = type(part)
        yield f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def _check_order(tap: Tap, tokens: Tensor, images: Tensor) -> None:
    """Refuse tokens of Hiera's earlier stages, which come window by window."""
    grid = whole_stride_grid(tokens.shape[1], images)
    if grid is None or images.shape[-2] != _COARSEST * grid[0]:
        shape = f"a tensor of shape {tuple(tokens.shape)}"
        raise unreadable(tap, shape, images, "tokens of stride 32: those of finer stages are not in the images' order")
