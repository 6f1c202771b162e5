"""gradient_share: how much of a step's gradient falls on the tap; average_gradients: one gradient for all processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn


def gradient_share(tap_parameters: Iterable[nn.Parameter], all_parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return 100 × ‖gradient of the tap's parameters‖₁ / ‖gradient of all parameters‖₁ (arXiv 2510.25257, GAM).

    Nothing is read from the device. Parameters without a gradient count 0, and so does a share of nothing. Gradients
    that every process holds in full (one process, DDP) need no communication; sharded ones (FSDP2, tensor parallel) are
    summed where they lie and cost one small all-reduce, which every process of their mesh must join.

    Args:
        tap_parameters: the parameters of the tapped modules.
        all_parameters: every trained parameter; those of the tap may be among them or not.

    Returns:
        The share in percent as a 0-dim float32 tensor on the parameters' device, NaN where a gradient is not finite.
    """
    tap = {id(parameter): parameter for parameter in tap_parameters}
    rest = {id(parameter): parameter for parameter in all_parameters if id(parameter) not in tap}
    tap_norm, rest_norm = l1_norms((list(tap.values()), list(rest.values()))).unbind()
    total = tap_norm + rest_norm
    share = torch.where(total == 0, torch.zeros_like(total), 100 * (tap_norm / total))
    return torch.where(total.isfinite(), share, torch.full_like(share, torch.nan))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes, in one all-reduce; a missing gradient counts as 0.

    Does nothing where torch.distributed does not run. What is already the mean stays what it is, so gradients that
    accumulate over several backward passes may be averaged after each.

    Args:
        parameters: plain (not sharded) parameters, the same on every process.
    """
    parameters = list(parameters)
    if not parameters or not distributed.is_available() or not distributed.is_initialized():
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in parameters]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    means = torch.split(flat, [gradient.numel() for gradient in gradients])
    for parameter, gradient, mean in zip(parameters, gradients, means, strict=True):
        gradient.copy_(mean.view_as(gradient))
        parameter.grad = gradient


_SMALL, _CHUNK = 16384, 262144  # values: what is joined, and what stays in the cache between two passes over it


class _Layout(NamedTuple):
    """How a sharded parameter lies over processes."""

    mesh: Any
    placements: tuple[Any, ...]


@torch.no_grad()
def l1_norms(parts: Sequence[list[nn.Parameter]]) -> Tensor:
    """Return the L1 norm over the gradients of each part, float32, shape (len(parts),), on the parameters' device.

    Nothing is read from the device. Sharded gradients are summed where they lie and cost one small all-reduce for each
    way that parameters lie over processes, which every process of their mesh must join.
    """
    device = next((parameter.device for part in parts for parameter in part), torch.device("cpu"))
    # Layouts come from the parameters, not from the gradients: every process must meet the same ones in the same order.
    plain: list[list[Tensor]] = [[] for _ in parts]
    layouts: dict[_Layout | None, list[list[Tensor]]] = defaultdict(lambda: [[] for _ in parts], {None: plain})
    for index, part in enumerate(parts):
        for parameter in part:
            gradient = parameter.grad
            if type(parameter) is nn.Parameter:  # told apart first, since asking in vain for a layout takes its time
                if gradient is not None:
                    plain[index].append(gradient)
                continue
            layout = _layout(parameter)
            gradients = layouts[layout][index]
            if gradient is not None:
                gradients.append(gradient if layout is None else _local(gradient, layout))
    total = torch.zeros(len(parts), device=device)
    for layout, columns in layouts.items():
        norms = torch.stack([_l1_norm(gradients, device) for gradients in columns]) if columns else total
        total += norms if layout is None else _sum_over_shards(norms, layout)
    return total


def _l1_norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    """Return the L1 norm over plain tensors as one float32 scalar on the device."""
    groups: dict[tuple[torch.device, torch.dtype, torch.layout], list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        groups[gradient.device, gradient.dtype, gradient.layout].append(gradient)
    total = torch.zeros((), device=device)
    for (place, given, layout), group in groups.items():
        if layout is not torch.strided:
            group = [gradient.coalesce().values() for gradient in group]
        if given.is_complex:
            group = [gradient.abs() for gradient in group]
        dtype = torch.promote_types(group[0].dtype, torch.float32)
        # On CUDA a few kernels do it for all tensors.
        sums = torch._foreach_norm(group, ord=1, dtype=dtype) if place.type == "cuda" else _absolute_sums(group, dtype)
        total += torch.stack(sums).sum().to(device, torch.float32)
    return total


def _absolute_sums(gradients: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return sums that add up to the L1 norm, through a little memory that stays in the cache.

    The norm's own CPU kernel adds one by one: slower, and off by 1e-4 on a million values.
    """
    buffer = gradients[0].new_empty(_CHUNK)
    sums: list[Tensor] = []
    small: list[Tensor] = []
    count = 0
    for gradient in gradients:
        flat = gradient.reshape(-1)
        size = flat.numel()
        if size > _SMALL:
            sums += [torch.abs(part, out=buffer[: part.numel()]).sum(dtype=dtype) for part in flat.split(_CHUNK)]
            continue
        if count + size > _CHUNK:
            sums.append(torch.cat(small, out=buffer[:count]).abs_().sum(dtype=dtype))
            small, count = [], 0
        small.append(flat)
        count += size
    if small:
        sums.append(torch.cat(small, out=buffer[:count]).abs_().sum(dtype=dtype))
    return tuple(sums)


def _layout(parameter: Tensor) -> _Layout | None:
    placements = getattr(parameter, "placements", None)
    return None if placements is None else _Layout(parameter.device_mesh, tuple(placements))  # type: ignore[attr-defined]


def _local(gradient: Any, layout: _Layout) -> Tensor:
    local: Tensor = gradient.redistribute(layout.mesh, layout.placements).to_local()
    return local


def _sum_over_shards(norms: Tensor, layout: _Layout) -> Tensor:
    """Add up what the processes of a mesh hold, replicas once."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    placements = [Partial() if placement.is_shard() else Replicate() for placement in layout.placements]
    return DTensor.from_local(norms, layout.mesh, placements, run_check=False).full_tensor()
