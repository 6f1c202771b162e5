"""Layouts: how maps lie in what networks put out, and how to tell whether they are maps of given images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from vfmdistill.adapters.protocol import Tap
from vfmdistill.errors import CaptureError


def channels_first(output: Tensor) -> Tensor:
    """(N, h, w, C) -> (N, C, h, w)."""
    return output.permute(0, 3, 1, 2)


def tokens_to_map(tokens: Tensor, grid: tuple[int, int], first: int = 0) -> Tensor:
    """(N, L, C) -> (N, C, rows, columns), from the tokens ``first`` to ``first + rows·columns``, height-major."""
    rows, columns = grid
    cells = tokens[:, first : first + rows * columns]
    return cells.transpose(1, 2).reshape(cells.shape[0], cells.shape[2], rows, columns)


def whole_stride_grid(count: int, images: Tensor) -> tuple[int, int] | None:
    """Return the grid (rows, columns) of so many cells if a whole stride cuts the images into them, else None."""
    height, width = images.shape[-2:]
    stride = math.isqrt(height * width // max(count, 1))
    if stride == 0 or height % stride or width % stride or (height // stride) * (width // stride) != count:
        return None
    return height // stride, width // stride


def rounded_up_grid(images: Tensor, stride: int) -> tuple[int, int]:
    """Return the grid that padded convolutions of that stride leave of the images: what is left over gets a cell."""
    height, width = images.shape[-2:]
    return -(-height // stride), -(-width // stride)


def same_aspect(grid: tuple[int, int], images: Tensor) -> bool:
    """Whether a grid has the images' aspect ratio to within one cell."""
    (height, width), (rows, columns) = images.shape[-2:], grid
    return (rows - 1) * width <= height * (columns + 1) and (columns - 1) * height <= width * (rows + 1)


def tensors_in(output: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested dicts, lists and tuples with their places, such as "['p5'][0]"."""
    if isinstance(output, Tensor):
        yield place, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors_in(value, f"{place}[{key!r}]")
    elif isinstance(output, list | tuple):
        for index, value in enumerate(output):
            yield from tensors_in(value, f"{place}[{index}]")


def unreadable(tap: Tap, given: str, images: Tensor, expected: str, advice: str = "") -> CaptureError:
    """Return the error for an output in which there is no map.

    Args:
        tap: what gave the output.
        given: what was found instead, with its article.
        images: (N, 3, H, W), the batch that the student saw.
        expected: what can be read.
        advice: what to do, if there is more than to tap another module or to pass an adapter.
    """
    return CaptureError(
        f"tap {tap.path!r} ({type(tap.module).__name__}) gave {given} for images {tuple(images.shape)}; expected "
        f"{expected}. {advice or 'Tap another module, or pass an adapter whose feature_map() reads this output.'}"
    )
