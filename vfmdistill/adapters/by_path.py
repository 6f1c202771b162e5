"""ByPathAdapter: taps named by their dotted paths, read as maps or as tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from vfmdistill.adapters.layouts import (
    channels_first,
    same_aspect,
    tensors_in,
    tokens_to_map,
    unreadable,
    whole_stride_grid,
)
from vfmdistill.adapters.protocol import Tap
from vfmdistill.errors import InputError, unknown_name

_COARSEST = 32  # stride
_MOST_PREFIX_TOKENS = 8
_READABLE = (
    "a map (N, C, h, w) in the images' aspect ratio, a map (N, h, w, C) or tokens (N, h·w, C), behind prefix tokens or "
    "not, at a whole stride of the images, or one deepest such map in a dict, list or tuple"
)


class ByPathAdapter:
    """The adapter of students that nobody wrote one for.

    Reads maps (N, C, h, w) in the images' aspect ratio; what is none, as maps (N, h, w, C) at a whole stride of the
    images; tokens (N, h·w, C) in height-major order at such a stride, also behind up to 8 prefix tokens where only one
    number of them fits; and, of a dict, list or tuple, nested or not, its deepest map of stride 32 or less, unless
    several are equally deep.

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
            CaptureError: the output is neither a map nor tokens of these images, or holds several that could be meant.
        """
        if isinstance(output, Tensor):
            feature_map = _as_map(output, images)
            if feature_map is None:
                kind = "map" if output.ndim == 4 else "tensor"
                raise unreadable(tap, f"a {kind} of shape {tuple(output.shape)}", images, _READABLE)
            return feature_map
        return _deepest(tap, output, images)


def _deepest(tap: Tap, output: Any, images: Tensor) -> Tensor:
    """Return the one deepest map in a container."""
    tensors = _different(tensors_in(output))
    height, width = images.shape[-2:]
    of_these_images = [entry for entry in tensors if entry[1].shape[:1] == images.shape[:1]]
    found = []
    for place, tensor in of_these_images or tensors:
        feature_map = _as_map(tensor, images)
        if feature_map is not None:
            found.append((feature_map.shape[-2] * feature_map.shape[-1], place, tensor.ndim, feature_map))
    if len(found) == 1:
        return found[0][-1]
    fine = [entry for entry in found if entry[0] >= max(1, height // _COARSEST) * max(1, width // _COARSEST)]
    fewest = [entry for entry in fine if entry[0] == min(cells for cells, *_ in fine)]
    # Beside maps, tokens are as likely queries that happen to be so many.
    mixed = len({dimensions for _, _, dimensions, _ in fine}) == 2 and fewest[0][2] == 3
    if len(fewest) == 1 and not mixed:
        return fewest[0][-1]
    given = (
        f"a {type(output).__name__} of {', '.join(f'{place} {tuple(t.shape)}' for place, t in tensors) or 'nothing'}"
    )
    if found:
        places = " or ".join(place for _, place, *_ in (fewest or found))
        given += f", of which {places} could be meant"
    raise unreadable(tap, given, images, _READABLE)


def _different(tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Leave out a tensor that came before, as the last of all hidden states is often given twice."""
    seen: dict[int, tuple[str, Tensor]] = {}
    for place, tensor in tensors:
        seen.setdefault(id(tensor), (place, tensor))
    return list(seen.values())


def _as_map(output: Tensor, images: Tensor) -> Tensor | None:
    """(N, C, h, w), (N, h, w, C) or tokens -> (N, C, h, w), or None where it is none of them, or more than one."""
    if output.ndim == 4:
        if same_aspect((output.shape[2], output.shape[3]), images):
            return output
        rows, columns = output.shape[1:3]
        return channels_first(output) if whole_stride_grid(rows * columns, images) == (rows, columns) else None
    if output.ndim != 3:
        return None
    count = output.shape[1]
    grid = whole_stride_grid(count, images)
    if grid is not None:
        return tokens_to_map(output, grid)
    fitting = [prefix for prefix in range(1, _MOST_PREFIX_TOKENS + 1) if _is_grid(count - prefix, images)]
    if len(fitting) != 1:
        return None
    grid = whole_stride_grid(count - fitting[0], images)
    return None if grid is None else tokens_to_map(output, grid, fitting[0])


def _is_grid(count: int, images: Tensor) -> bool:
    """Whether a whole stride cuts the images into so many cells, and they are too many for that to be chance."""
    return count > _MOST_PREFIX_TOKENS and whole_stride_grid(count, images) is not None
