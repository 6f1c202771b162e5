"""Sharding: what FSDP2 (`torch.distributed.fsdp.fully_shard`) makes of a student's parameters."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from vfmdistill.adapters import Tap
from vfmdistill.trained import trained


def reshard(student: nn.Module) -> None:
    """Free what FSDP2 has gathered: after a forward without backward it would leave the root's parameters whole."""
    if is_distributed():
        from torch.distributed.fsdp import FSDPModule

        for module in student.modules():
            if isinstance(module, FSDPModule):
                module.reshard()


def left_whole(student: nn.Module, taps: Iterable[Tap]) -> str | None:
    """Return the path of the first tap that FSDP2 shards and has not split again, None if there is none.

    After a backward pass its gradients then are those of this process alone.
    """
    if not is_distributed():
        return None
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    for tap in taps:
        names = tap.path.split(".") if tap.path else []
        around = (student.get_submodule(".".join(names[:depth])) for depth in range(len(names) + 1))
        sharded = any(isinstance(module, FSDPModule) for module in around)
        if sharded and not all(isinstance(parameter, DTensor) for parameter in trained(tap.module)):
            return tap.path
    return None


def is_distributed() -> bool:
    """Whether torch.distributed runs."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
