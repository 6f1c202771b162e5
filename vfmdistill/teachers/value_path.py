"""The value path of an attention: what it puts out where each token sees itself alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Kernels for attention are launched over the batch, which CUDA limits to 65,535.
_TOKENS_AT_ONCE = 32_768


def value_path(attention: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Return the values of an attention, pushed through its output projection.

    A class token that is trained alone, as CLIP's, gathers from the values of the last attention; the tokens that the
    block itself puts out were never trained to mean anything. MaskCLIP (Zhou, Loy and Dai, arXiv 2112.01071, section
    3.2) therefore drops queries and keys, and with them residual and MLP. A sequence of one token can only attend to
    itself, so each token is given to the attention as a sequence of its own; this needs to know neither how the
    attention holds its weights nor what else it does with the values.

    Args:
        attention: maps (M, 1, C) to (M, 1, D): self-attention with its output projection, without rotary positions,
            which turn queries and keys only.
        tokens: (N, L, C), as the last block's attention gets them, which is behind the norm in front of it.

    Returns:
        (N, L, D).
    """
    single = tokens.flatten(0, 1).unsqueeze(1)
    values = torch.cat([attention(some) for some in single.split(_TOKENS_AT_ONCE)])
    return values.view(*tokens.shape[:2], values.shape[-1])
