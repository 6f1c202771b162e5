"""Dense features of a timm network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill.errors import InputError
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.sized_copies import SizedCopies
from vfmdistill.teachers.value_path import value_path


class TimmFeatures(nn.Module):
    """Map and summary of a timm network.

    The map is what a `Readout` says of the blocks, behind the network's final norm wherever timm keeps it: ``norm``,
    ``neck`` (SAM), or, in networks that pool by averaging and normalise then, ``fc_norm`` or ``head.norm``, which are
    applied to each cell. Class and register tokens are dropped. Hierarchical networks give their last stage. The
    summary is what the network would hand to its classifier.

    Args:
        network: a timm model without a classifier.
        readout: which features make the map.
        name: the teacher, for messages.
        copies: for a network that takes images of one size, where its copies for other sizes come from.

    Raises:
        InputError: the network has no such blocks, or no value path.
    """

    def __init__(
        self, network: nn.Module, readout: Readout | None = None, name: str = "", copies: SizedCopies | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self._copies = copies
        # Hiera's intermediates cannot be normalised by timm: its final norm comes behind the pooling.
        self._norm = type(network).__name__ not in ("Hiera", "HieraDet")
        # SAM 2's trunk ends without a norm; the one in timm's head was never trained.
        self._late_norm = not _architecture(network).startswith("sam2_")
        readout = readout or Readout()
        self._mean = readout.merge == "mean"
        self._value = readout.dense == "value"
        self._blocks: tuple[int, ...] | None = None
        if self._value:
            self._blocks = (_depth_with_values(network, name) - 2,)
        elif readout.blocks is not None:
            self._blocks = readout.block_indices(_depth(network, name), name)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images (N, 3, H, W) to the map (N, C, h, w) and the summary (N, D)."""
        network: Any = self.network
        if self._copies is not None:
            network = self._copies.at(network, (images.shape[-2], images.shape[-1]))
        depths: list[int] = sorted(self._blocks or ())
        final, maps = network.forward_intermediates(
            images, indices=depths or 1, norm=self._norm and not self._value, output_fmt="NCHW"
        )
        if self._value:
            maps = [_values(network, maps[0])]
        elif self._blocks is not None:
            maps = [maps[depths.index(block)] for block in self._blocks]
        if self._late_norm:
            maps = [_late_normed(network, feature_map) for feature_map in maps]
        return self._merged(maps), network.forward_head(final, pre_logits=True)

    def _merged(self, maps: list[Tensor]) -> Tensor:
        if len(maps) == 1:
            return maps[0]
        return torch.stack(maps).mean(0) if self._mean else torch.cat(maps, dim=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TimmFeatures:
        """Move, but keep rotary frequencies in the precision they have: the angles are multiples of them."""
        rotary = [module for module in self.modules() if type(module).__name__.startswith("RotaryEmbedding")]
        precise = [(module, dict(module.named_buffers(recurse=False))) for module in rotary]
        nn.Module._apply(self, fn, recurse)
        for module, buffers in precise:
            for key, buffer in buffers.items():
                moved = getattr(module, key)
                if moved.dtype != buffer.dtype and buffer.is_floating_point():
                    setattr(module, key, moved if buffer.is_meta else buffer.to(moved.device))
        if self._copies is not None:
            self._copies.clear()
        return self


def _architecture(network: Any) -> str:
    return str((getattr(network, "pretrained_cfg", None) or {}).get("architecture") or "")


def _depth(network: Any, name: str) -> int:
    stages = network.feature_info
    if len({stage["reduction"] for stage in stages}) > 1 or len({stage["num_chs"] for stage in stages}) > 1:
        raise InputError(
            f"teacher {name!r} is hierarchical: its {len(stages)} stages differ in size and width, and its map is the "
            "last. blocks= chooses among the blocks of a plain transformer; drop it."
        )
    return len(stages)


def _depth_with_values(network: Any, name: str) -> int:
    from timm.models.eva import EvaBlock
    from timm.models.vision_transformer import Block

    blocks: Any = getattr(network, "blocks", ())
    if len(blocks) < 2 or type(blocks[-1]) not in (Block, EvaBlock):
        raise InputError(
            f'teacher {name!r} has no value path: dense="value" needs a plain transformer whose blocks normalise in '
            'front of their attention, such as CLIP\'s. Take dense="tokens".'
        )
    return len(blocks)


def _values(network: Any, entering: Tensor) -> Tensor:
    """The last block's value path behind the final norm, from the map (N, C, h, w) that enters that block."""
    block = network.blocks[-1]
    values = value_path(block.attn, block.norm1(entering.flatten(2).mT))
    normed: Tensor = network.norm(values)
    return normed.mT.reshape(*normed.mT.shape[:2], *entering.shape[-2:])


def _late_normed(network: Any, feature_map: Tensor) -> Tensor:
    """A map (N, C, h, w) behind the norm that timm applies after pooling, if the network has its final norm there."""
    if not isinstance(getattr(network, "norm", nn.Identity()), nn.Identity) or hasattr(network, "neck"):
        return feature_map
    norm: Any = getattr(network, "fc_norm", None)
    if norm is None or isinstance(norm, nn.Identity):
        norm = getattr(getattr(network, "head", None), "norm", None)
        if not isinstance(norm, nn.LayerNorm) or norm.normalized_shape[0] != feature_map.shape[1]:
            return feature_map
    channels_last = not type(norm).__name__.endswith("2d")
    normed: Tensor = norm(feature_map.movedim(1, -1)).movedim(-1, 1) if channels_last else norm(feature_map)
    return normed
