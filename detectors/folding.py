"""Folding: constant affine maps become part of the convolutions beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from detectors.conv_blocks import RepBlock


def fold_norms(network: nn.Module, images: Tensor) -> None:
    """Fold every batch norm into the convolution that it alone reads, in place; what it did besides stays.

    Which convolution that is comes from a forward pass, so it needs no list of networks. Where a convolution's output
    is read by others too, or the norm reads something else, both stay as they are.

    Args:
        network: in eval mode, its parameters not requiring gradients.
        images: what the network takes; the values do not matter.
    """
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in _pairs(network, images):
        device, dtype = conv.weight.device, conv.weight.dtype
        exact = "cpu" if device.type == "mps" else device  # which has no float64
        weight, bias, *statistics = (
            None if tensor is None else tensor.detach().to(exact).double()
            for tensor in (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        )
        mean, variance, scale, shift = statistics
        weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)  # type: ignore[arg-type]
        _set(conv, weight.to(device, dtype), bias.to(device, dtype))
        parent, _, name = names[norm].rpartition(".")
        # timm has norms that hold the activation which follows them
        setattr(network.get_submodule(parent), name, getattr(norm, "act", nn.Identity()))


def fold_branches(network: nn.Module) -> None:
    """Make one convolution of the two in every `RepBlock` whose norms are folded, in place."""
    for name, block in list(network.named_modules()):
        if isinstance(block, RepBlock):
            conv, point = block.conv3x3.conv, block.conv1x1.conv
            if conv.bias is None or point.bias is None:
                continue
            _set(conv, conv.weight + F.pad(point.weight, (1, 1, 1, 1)), conv.bias + point.bias)
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, nn.Sequential(conv, block.activation))


def fold_affines(network: nn.Module) -> None:
    """Fold the learnable affine blocks of HGNetV2 into the convolutions that read them, in place, where that is exact.

    It is where all readers are 1 × 1 convolutions; the border of a padded one would not see the offset.
    """
    from timm.models.hgnet import HighPerfGpuBlock, LightConvBNAct, StemV2

    for module in network.modules():
        if isinstance(module, StemV2):
            _fold_affine(module.stem3, [(module.stem4, 0)])
        elif isinstance(module, HighPerfGpuBlock):
            squeeze, excite = cast("Iterable[Any]", module.aggregation)
            light = [layer for layer in cast("Iterable[Any]", module.layers) if isinstance(layer, LightConvBNAct)]
            # The aggregation reads the block's input and behind it what every layer puts out.
            first = squeeze.conv.in_channels - sum(layer.conv2.conv.out_channels for layer in light)
            for layer, following in zip_longest(light, light[1:]):
                _fold_affine(layer.conv2, [(squeeze, first), *([(following.conv1, 0)] if following else [])])
                first += layer.conv2.conv.out_channels
            if hasattr(excite, "lab"):
                _fold_affine(squeeze, [(excite, 0)])


def _fold_affine(writer: Any, readers: Iterable[tuple[Any, int]]) -> None:
    """Fold `writer.lab` into the convolutions of `readers`, each of which reads it from the given channel on."""
    affine, channels = writer.lab, writer.conv.out_channels
    if isinstance(affine, nn.Identity):
        return
    for reader, first in readers:
        weight, bias = reader.conv.weight.clone(), reader.conv.bias
        part = weight[:, first : first + channels]
        offset = part.sum(dim=(1, 2, 3)) * affine.bias
        part *= affine.scale
        _set(reader.conv, weight, offset if bias is None else bias + offset)
    writer.lab = nn.Identity()


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    conv.weight, conv.bias = (nn.Parameter(tensor.detach(), requires_grad=False) for tensor in (weight, bias))


def _pairs(network: nn.Module, images: Tensor) -> list[tuple[nn.Conv2d, Any]]:
    """Return every convolution whose output goes into one batch norm and nowhere else, with that norm."""
    from timm.layers import FrozenBatchNormAct2d
    from torchvision.ops import FrozenBatchNorm2d

    norm_types = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d, FrozenBatchNormAct2d)
    written: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # holds the tensors, so that no two share an id
    read: list[tuple[nn.Conv2d, nn.Module, Any]] = []
    calls: Counter[nn.Module] = Counter()

    def watch(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            written[id(output)] = module, output
        elif id(inputs[0]) in written:
            conv, tensor = written[id(inputs[0])]
            read.append((conv, module, tensor.grad_fn))

    watched = [
        module
        for module in network.modules()
        # kinds of convolutions that treat their weights in other ways are left alone
        if type(module) is nn.Conv2d or (isinstance(module, norm_types) and module.running_mean is not None)
    ]
    handles = [module.register_forward_hook(watch) for module in watched]
    try:
        with torch.enable_grad():  # the graph of gradients tells who reads what
            readers = Counter(_edges(network(images.requires_grad_())))
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm, node in read if readers[node] == 1 and calls[conv] == calls[norm] == 1]


def _edges(output: Any) -> Iterator[Any]:
    """Yield a node of the graph behind an output once for every use of its result."""
    waiting = [tensor.grad_fn for tensor in _tensors(output)]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        yield node
        if node not in seen:
            seen.add(node)
            waiting += [reader for reader, _ in node.next_functions]


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from (tensor for value in output.values() for tensor in _tensors(value))
    elif isinstance(output, (list, tuple)):
        yield from (tensor for value in output for tensor in _tensors(value))
