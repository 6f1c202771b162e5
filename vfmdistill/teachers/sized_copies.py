"""Copies of a network that is built for one size of images, for other sizes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from vfmdistill.errors import InputError
from vfmdistill.teachers.positions import BICUBIC

_KEPT = 16
_At = TypeVar("_At", bound=Callable[..., nn.Module])
_outside_compiled_code: Callable[[_At], _At] = torch.compiler.disable


class SizedCopies:
    """Copies of one network, each for images of another size, that share its parameters.

    Only what depends on the size is a copy's own: tables of positions and their indices. The copies that were used
    last are kept.

    Args:
        build: ``build(network, (height, width))`` returns the copy, on the CPU or where the network is.
    """

    def __init__(self, build: Callable[[nn.Module, tuple[int, int]], nn.Module]) -> None:
        self._build = build
        self._copies: OrderedDict[tuple[int, int], nn.Module] = OrderedDict()

    @_outside_compiled_code
    def at(self, network: nn.Module, size: tuple[int, int]) -> nn.Module:
        """Return the copy for images of a size."""
        copy = self._copies.pop(size, None)
        if copy is None:
            like = next(network.parameters())
            with torch.inference_mode(False), torch.no_grad():
                copy = self._build(network, size).to(like.device, like.dtype).eval().requires_grad_(False)
        while len(self._copies) >= _KEPT:
            self._copies.popitem(last=False)
        self._copies[size] = copy
        return copy

    def clear(self) -> None:
        """Forget all copies, as is needed when the network has moved."""
        self._copies.clear()


def at_size(model_id: str, network: nn.Module, size: tuple[int, int]) -> nn.Module:
    """Build a timm network again for images of another size and give it the parameters of the first.

    Tables of relative positions are resampled as timm does, which for BEiT is what its authors do; Hiera's table of
    positions is resampled as ViTDet does with MAE's.

    Args:
        model_id: timm's name.
        network: the network as it was built for its own size.
        size: (height, width) in pixels.

    Raises:
        InputError: the network does not let itself be built for that size.
    """
    import timm

    own: Any = network
    try:
        with torch.random.fork_rng(devices=[]):
            copy: Any = timm.create_model(model_id, pretrained=False, num_classes=0, img_size=size)
        state = dict(network.state_dict())
        table = state.get("pos_embed")
        if type(network).__name__ == "Hiera" and table is not None and table.ndim == 3:
            grid = table.unflatten(1, own.tokens_spatial_shape).movedim(-1, 1)
            state["pos_embed"] = BICUBIC(grid, tuple(copy.tokens_spatial_shape)).flatten(2).mT
        rule = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        copy.load_state_dict(state if rule is None else rule(state, copy), assign=True)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InputError(
            f"timm:{model_id} is built for one size of images and cannot be built for {size[0]} × {size[1]} pixels: "
            f"{error}. Ask for another grid, or choose a model that takes any size, such as dinov2_vitb14."
        ) from error
    built: nn.Module = copy
    return built
