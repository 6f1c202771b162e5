"""What the modules of a student put out for a probe, as far as it can be read as maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill.adapters import ByPathAdapter, StudentAdapter, Tap
from vfmdistill.adapters.layouts import tensors_in
from vfmdistill.capture import probe_outputs
from vfmdistill.errors import CaptureError, InputError

_STEP = 32  # pixels by which the second probe is shorter: networks that halve five times take it


@dataclass(frozen=True)
class Finding:
    """A module whose output can be read as a map.

    Attributes:
        path, module: where it is in the student, and what.
        map_shape: (N, C, h, w), as read.
        shape: of the tensor that was read.
        layout: "NCHW", "NHWC" or "tokens".
        place: where in the output the tensor lies, as "['p5']"; "" where it is the output.
        calls: how often the module ran.
        fixed: the map has the same cells for a smaller image.
        predicts: a convolution or a linear layer gave it, and the student returns it as it is.
        passed_on: the module was given the map by another one and returns it too, and had no part in it.
    """

    path: str
    module: nn.Module
    map_shape: tuple[int, ...]
    shape: tuple[int, ...]
    layout: str
    place: str
    calls: int = 1
    fixed: bool = False
    predicts: bool = False
    passed_on: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return self.map_shape[2], self.map_shape[3]


def find_maps(student: nn.Module, images: Tensor) -> tuple[dict[str, Any], dict[str, Finding]]:
    """Run a student twice, and return by path all outputs and those that are maps, in the order of the forward.

    Raises:
        InputError: the student fails on the images.
    """
    modules = dict(student.named_modules())
    calls: Counter[str] = Counter()
    with ExitStack() as hooks:
        for path, module in modules.items():

            def count(module: nn.Module, args: Any, output: Any, path: str = path) -> None:
                calls[path] += 1

            hooks.callback(module.register_forward_hook(count).remove)
        outputs = probe_outputs(student, modules, images)
    found = _read(modules, outputs, images)
    fixed = _fixed(student, found, images)
    makers: dict[int, str] = {}
    for path, output in outputs.items():
        for _, tensor in tensors_in(output):
            makers.setdefault(_storage(tensor), path)
    predictions = _predictions(modules, outputs)
    findings = {}
    for path, (finding, source) in found.items():
        findings[path] = replace(
            finding,
            calls=calls[path],
            fixed=path in fixed,
            predicts=_storage(source) in predictions,
            passed_on=not _is_inside(makers.get(_storage(source), path), path),
        )
    return outputs, findings


def read_tap(adapter: StudentAdapter, tap: Tap, output: Any, images: Tensor) -> tuple[Finding, Tensor]:
    """Return what an adapter reads from an output, and the tensor in it that holds the map.

    Raises:
        CaptureError: it is no map of these images.
    """
    feature_map = adapter.feature_map(tap, output, images)
    if feature_map.ndim != 4 or feature_map.shape[0] != images.shape[0]:
        raise CaptureError(f"tap {tap.path!r} gave a map of shape {tuple(feature_map.shape)}.")
    tensors = dict(tensors_in(output))
    place = next((where for where, tensor in tensors.items() if _storage(tensor) == _storage(feature_map)), "")
    source = tensors.get(place, feature_map)  # an adapter may also compute the map
    layout = "NCHW"
    if source.ndim == 3:
        layout = "tokens"
    elif source.ndim == 4 and source.shape[1] != feature_map.shape[1] and source.shape[3] == feature_map.shape[1]:
        layout = "NHWC"
    return Finding(tap.path, tap.module, tuple(feature_map.shape), tuple(source.shape), layout, place), source


def _read(
    modules: Mapping[str, nn.Module], outputs: Mapping[str, Any], images: Tensor
) -> dict[str, tuple[Finding, Tensor]]:
    """Read every output that can be read without an adapter; maps as fine as the images, and single cells, are none."""
    reader = ByPathAdapter(())
    found = {}
    for path, output in outputs.items():
        try:
            finding, source = read_tap(reader, Tap(path, modules[path]), output, images)
        except CaptureError:
            continue
        if finding.grid[0] < images.shape[-2] and finding.grid != (1, 1):
            found[path] = finding, source
    return found


def _fixed(student: nn.Module, found: Mapping[str, Any], images: Tensor) -> set[str]:
    """Return the paths whose output for a smaller image is no smaller map, as pooled maps and query tokens are not.

    The image gets smaller, not larger: no table of positions is read beyond its end. Nothing is known of a student that
    takes one size only, of one that brings all images to one size, and of strides above 32.
    """
    height = images.shape[-2] - _STEP
    if height < _STEP or not found:
        return set()
    modules = {path: finding.module for path, (finding, _) in found.items()}
    part = images[..., :height, :].contiguous()
    try:
        outputs = probe_outputs(student, modules, part)
    except InputError:
        return set()
    smaller = _read(modules, outputs, part)
    fixed = {
        path
        for path, (finding, _) in found.items()
        if path in outputs and (path not in smaller or smaller[path][0].grid[0] >= finding.grid[0])
    }
    if next(iter(found)) in fixed:  # the first map of all follows the images, unless they were resized before it
        return set()
    return {path for path in fixed if found[path][0].grid[0] >= images.shape[-2] // _STEP}


def _predictions(modules: Mapping[str, nn.Module], outputs: Mapping[str, Any]) -> set[int]:
    """Return the storages of tensors that the student returns just as a convolution or a linear layer gave them."""
    makers: dict[int, nn.Module] = {}
    for path, output in outputs.items():
        if next(modules[path].children(), None) is None:
            makers.update((_storage(tensor), modules[path]) for _, tensor in tensors_in(output))
    returned = {_storage(tensor) for _, tensor in tensors_in(outputs.get(""))}
    plain = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    return {storage for storage in returned if isinstance(makers.get(storage), plain)}


def _storage(tensor: Tensor) -> int:
    """Return the address of a tensor's memory, the same for all views of it."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)


def _is_inside(path: str, outer: str) -> bool:
    return path == outer or not outer or path.startswith(f"{outer}.")
