"""ByPathAdapter: taps named by their dotted paths, read as maps or as tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vfmdistill.adapters.protocol import Tap
from vfmdistill.errors import CaptureError, InputError, unknown_name


class ByPathAdapter:
    """The adapter of students that nobody wrote one for.

    Reads maps (N, C, h, w), and tokens (N, h·w, C) in height-major order at an integer stride of the images.

    Args:
        paths: dotted module paths, as in `student.named_modules()`.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = tuple(paths)

    def taps(self, student: nn.Module) -> tuple[Tap, ...]:
        """Return the modules at the paths.

        Raises:
            InputError: no path, or one path twice.
            UnknownNameError: the student has no module of that path.
        """
        if not self.paths or len(set(self.paths)) < len(self.paths):
            raise InputError(f"taps {list(self.paths)}; expected one or more different module paths.")
        modules = dict(student.named_modules(remove_duplicate=False))
        for path in self.paths:
            if path not in modules:
                hint = "A tap is a module path as in student.named_modules()."
                raise unknown_name("tap", path, (name for name in modules if name), hint)
        return tuple(Tap(path, modules[path]) for path in self.paths)

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        """Return the map (N, C, h, w) that the tap put out for images (N, 3, H, W).

        Raises:
            CaptureError: the output is neither a map nor tokens of these images.
        """
        if not isinstance(output, Tensor):
            raise _unreadable(tap, f"a {type(output).__name__}", images)
        feature_map = _tokens_to_map(output, images) if output.ndim == 3 else output
        if feature_map is None or feature_map.ndim != 4:
            raise _unreadable(tap, f"a tensor of shape {tuple(output.shape)}", images)
        if not _same_aspect(feature_map, images):
            raise _unreadable(tap, f"a map of shape {tuple(output.shape)}", images)
        return feature_map


def _tokens_to_map(tokens: Tensor, images: Tensor) -> Tensor | None:
    """(N, h·w, C) -> (N, C, h, w), or None where no stride cuts the images into that many cells."""
    height, width = images.shape[-2:]
    stride = math.isqrt(height * width // max(tokens.shape[1], 1))
    if stride == 0 or height % stride or width % stride or (height // stride) * (width // stride) != tokens.shape[1]:
        return None
    return tokens.transpose(1, 2).reshape(*tokens.shape[::2], height // stride, width // stride)


def _same_aspect(feature_map: Tensor, images: Tensor) -> bool:
    """Whether the grid has the images' aspect ratio to within one cell, as it has not where channels come last."""
    (height, width), (rows, columns) = images.shape[-2:], feature_map.shape[-2:]
    return (rows - 1) * width <= height * (columns + 1) and (columns - 1) * height <= width * (rows + 1)


def _unreadable(tap: Tap, given: str, images: Tensor) -> CaptureError:
    return CaptureError(
        f"tap {tap.path!r} ({type(tap.module).__name__}) gave {given} for images {tuple(images.shape)}; expected a map "
        "(N, C, h, w) in the images' aspect ratio, or tokens (N, h·w, C) at an integer stride without class or prefix "
        "tokens. Tap another module, or pass an adapter whose feature_map() reads this output."
    )
