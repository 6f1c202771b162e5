"""Readout: what is read from a teacher's network as its dense features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from vfmdistill.errors import InputError

Dense: TypeAlias = Literal["tokens", "value"]
Merge: TypeAlias = Literal["concat", "mean"]


@dataclass(frozen=True)
class Readout:
    """Which features of a teacher's network make its map.

    Attributes:
        dense: ``"tokens"``, what the blocks put out; or ``"value"``, what the last block's attention would put out if
            each cell attended to itself alone, which is where networks trained by their class token alone keep their
            dense features (MaskCLIP, arXiv 2112.01071, section 3.2).
        blocks: the blocks to read, counted from 1 (a ViT-B has 12: ``(9, 12)``), in the order in which they are to be
            concatenated; None is the last. The network's final norm is applied to each, as DINOv2's authors do with
            intermediate layers.
        merge: whether the maps of several blocks are concatenated along the channels or averaged.

    Raises:
        InputError: a field is not as described, or ``dense="value"`` comes with blocks.
    """

    dense: Dense = "tokens"
    blocks: tuple[int, ...] | None = None
    merge: Merge = "concat"

    def __post_init__(self) -> None:
        if self.dense not in get_args(Dense):
            raise InputError(f'dense={self.dense!r} is not known; expected "tokens" or "value".')
        if self.merge not in get_args(Merge):
            raise InputError(f'merge={self.merge!r} is not known; expected "concat" or "mean".')
        if self.blocks is None:
            return
        if self.dense == "value":
            raise InputError(
                f'dense="value" reads the last block only, blocks={self.blocks} asks for others. Drop one of the two.'
            )
        object.__setattr__(self, "blocks", _checked(self.blocks))

    def block_indices(self, depth: int, name: str) -> tuple[int, ...]:
        """Return the blocks to read, counted from 0.

        Args:
            depth: number of blocks that the network has.
            name: the teacher, for the message.

        Raises:
            InputError: the network has no such block.
        """
        if self.blocks is None:
            return (depth - 1,)
        if max(self.blocks) > depth:
            raise InputError(
                f"teacher {name!r} has {depth} blocks, blocks={self.blocks} asks for {max(self.blocks)}. "
                f"Blocks count from 1 to {depth}."
            )
        return tuple(block - 1 for block in self.blocks)

    def embed_dim(self, width: int) -> int:
        """Channels of the map, given those of one block."""
        return width * len(self.blocks) if self.blocks and self.merge == "concat" else width


def _checked(blocks: object) -> tuple[int, ...]:
    wanted = tuple(blocks) if isinstance(blocks, Sequence) and not isinstance(blocks, str) else ()
    if (
        not wanted
        or not all(isinstance(block, int) and not isinstance(block, bool) and block >= 1 for block in wanted)
        or len(set(wanted)) != len(wanted)
    ):
        raise InputError(
            f"blocks={blocks!r} is no choice of blocks; expected different numbers from 1 on, such as blocks=[9, 12]."
        )
    return wanted
