"""Compiling a teacher's network so that new sizes of images do not compile it again."""

from __future__ import annotations

from torch import nn

_MOST = 0.8  # of a network's parameters


def compile_network(network: nn.Module) -> None:
    """Let a network be compiled by `torch.compile` at its first forward.

    In a transformer this is done block by block: all blocks are one piece of code on different weights, compiled once
    for a first number of tokens and once for any, while the patch embedding around them would be compiled for each
    size of images and, after eight, no more. Other networks are compiled as a whole.
    """
    for module in _repeated_blocks(network) or [network]:
        module.compile()


def _repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The members of a sequence of modules that are alike and hold most of the parameters; none if there is none."""
    most = _MOST * _size(network)
    for module in network.modules():
        if not isinstance(module, nn.Sequential | nn.ModuleList) or len(module) < 2 or _size(module) < most:
            continue
        blocks = list(module)
        if len({_structure(block) for block in blocks}) == 1:
            return blocks
    return []


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _structure(module: nn.Module) -> tuple[object, ...]:
    return type(module), *((name, parameter.shape) for name, parameter in module.named_parameters())
