"""Dense features of an image tower of open_clip."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill.teachers.positions import ANTIALIASED
from vfmdistill.teachers.readout import Readout
from vfmdistill.teachers.value_path import value_path


class OpenClipFeatures(nn.Module):
    """Map and summary of a transformer of open_clip.

    The map is what a `Readout` says of the blocks, behind the final norm, without the class token. A tower that
    normalises behind an attentional pooling only (CoCa) has no norm for its tokens. The summary is what the tower
    pools, in front of the projection to the space that it shares with text. Positions are resampled as OpenCLIP does
    with a checkpoint (`resize_pos_embed`): bicubic, antialiased.

    Args:
        tower: a `VisionTransformer` of open_clip without a projection.
        readout: which features make the map.
        name: the teacher, for messages.

    Raises:
        InputError: the tower has no such blocks.
    """

    def __init__(self, tower: nn.Module, readout: Readout | None = None, name: str = "") -> None:
        super().__init__()
        self.tower = tower
        vit: Any = tower
        readout = readout or Readout()
        self._mean = readout.merge == "mean"
        self._value = readout.dense == "value"
        self._blocks = readout.block_indices(len(vit.transformer.resblocks), name)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images (N, 3, H, W) to the map (N, C, h, w) and the summary (N, D)."""
        tower: Any = self.tower
        blocks = tower.transformer.resblocks
        patches = tower.conv1(images)
        tokens = self._embedded(patches)
        seen: dict[int, Tensor] = {}
        for index, block in enumerate(blocks):
            if self._value and index == len(blocks) - 1:
                seen[index] = value_path(block.attention, block.ln_1(tokens[:, 1:]))
            tokens = block(tokens)
            if not self._value and index in self._blocks:
                seen[index] = tokens[:, 1:]
        maps = [self._as_map(seen[index], patches) for index in self._blocks]
        merged = maps[0] if len(maps) == 1 else torch.stack(maps).mean(0) if self._mean else torch.cat(maps, dim=1)
        return merged, self._pooled(tokens)

    def _embedded(self, patches: Tensor) -> Tensor:
        """Patches (N, C, h, w) to tokens (N, 1 + h·w, C) with their positions."""
        tower: Any = self.tower
        first, table = tower.positional_embedding.to(patches.dtype).split([1, tower.positional_embedding.shape[0] - 1])
        table = table.unflatten(0, tower.grid_size).movedim(-1, 0)[None]
        positioned = patches + ANTIALIASED(table, (patches.shape[-2], patches.shape[-1]))
        class_token = (tower.class_embedding.to(patches.dtype) + first).expand(len(patches), 1, -1)
        normed: Tensor = tower.ln_pre(torch.cat([class_token, positioned.flatten(2).mT], dim=1))
        return normed

    def _pooled(self, tokens: Tensor) -> Tensor:
        tower: Any = self.tower
        if tower.attn_pool is not None:
            tokens = tower.attn_pool(tokens)
        late = tower.attn_pool is None and tower.final_ln_after_pool
        pooled: Tensor = tower._global_pool(tokens if late else tower.ln_post(tokens))[0]
        return tower.ln_post(pooled) if late else pooled

    def _as_map(self, tokens: Tensor, patches: Tensor) -> Tensor:
        tower: Any = self.tower
        normed = tokens if tower.attn_pool is not None else tower.ln_post(tokens)
        return normed.mT.reshape(len(tokens), -1, *patches.shape[-2:])
