"""Weights, gradients and the optimizer's state in shards, one for each process (FSDP2, torch's `fully_shard`).

What stands in shards is a `DTensor`. Torch's optimizers and norms do not take these together with plain tensors, such
as the injectors' parameters, so everything that computes on shards does it on the local tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from detectors.detector import Detector

from .checkpoint import load_optimizer_tensors, optimizer_tensors

Model = TypeVar("Model", bound=nn.Module)


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split a module's weights, in place, over the processes of a one-dimensional mesh.

    Of a detector that is trained, the stages of the backbone, encoder and decoder gather their weights when they run;
    every process has to run it, as often as the others. A module without trained parameters, such as an averaged model,
    is only kept in shards: see `whole`.
    """
    if isinstance(model, Detector) and any(parameter.requires_grad for parameter in model.parameters()):
        # It means outputs that are views, which must not be changed in place. Here nothing does.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        model.decoder.register_forward_hook(_outlive_the_shards)  # before those that `fully_shard` adds
        parts = (*model.backbone.children(), model.encoder, model.decoder)
        for part in (*(part for part in parts if any(True for _ in part.parameters())), model):
            fully_shard(part, mesh=mesh)
        return
    for owner in model.modules():
        for name, parameter in list(owner.named_parameters(recurse=False)):
            shards = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
            owner.register_parameter(name, nn.Parameter(shards, requires_grad=False))


@contextmanager
def whole(model: Model) -> Iterator[Model]:
    """Give a module that is only kept in shards its whole weights, until the context is left.

    Only entering needs all processes: inside, each runs the module by itself and as often as it likes.
    """
    shards = [
        (owner, name, parameter)
        for owner in model.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if isinstance(parameter, DTensor)
    ]
    try:
        for owner, name, parameter in shards:
            owner.register_parameter(name, nn.Parameter(parameter.full_tensor(), requires_grad=False))
        yield model
    finally:
        for owner, name, parameter in shards:
            owner.register_parameter(name, parameter)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a tensor in shards, sharing its memory, and other tensors as they are."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor


def local_state(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state dict with this process's part of every tensor."""
    return {name: local(value) for name, value in module.state_dict().items()}


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors. Every process has to call it."""
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in tensors.items()}


def scattered(tensors: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors in shards, those of the first process, where `places` has shards under their name."""
    return {name: _scatter(value, places.get(name)) for name, value in tensors.items()}


@torch.no_grad()
def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together, 0-dim. If any is in shards, every process has to call it."""
    whole_ones = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norm = nn.utils.get_total_norm(whole_ones)
    shards = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not shards:
        return norm
    square = nn.utils.get_total_norm([local(gradient) for gradient in shards]).square()
    distributed.all_reduce(square, group=shards[0].device_mesh.get_group())
    return (norm.to(square) ** 2 + square).sqrt()


class LocalParameters:
    """Lets an optimizer work on this process's shards as plain parameters, which share their memory.

    Args:
        optimizer: fresh; its groups get the plain parameters. They must carry "names".
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._shards: dict[str, DTensor] = {}
        self._local: dict[str, nn.Parameter] = {}
        for group in optimizer.param_groups:
            for index, (name, parameter) in enumerate(zip(group["names"], group["params"], strict=True)):
                if isinstance(parameter, DTensor):
                    self._shards[name] = parameter
                    self._local[name] = group["params"][index] = nn.Parameter(local(parameter))

    def follow(self) -> None:
        """Point to memory and gradients of the shards, which FSDP2 may have moved."""
        for name, plain in self._local.items():
            shards = self._shards[name]
            plain.data = local(shards)
            plain.grad = None if shards.grad is None else local(shards.grad)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in (*self._shards.values(), *self._local.values()):
            parameter.grad = None

    def gathered(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return what `checkpoint.optimizer_tensors` gives for whole parameters. Every process has to call it."""
        state = {}
        for key, value in optimizer_tensors(optimizer).items():
            shards = self._of(key)
            if shards is not None:
                value = DTensor.from_local(
                    value, shards.device_mesh, shards.placements, shape=shards.shape, stride=shards.stride()
                )
            state[key] = value
        return gathered(state)

    def load(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `gathered` returned. Every process has to call it."""
        parts = {key: local(_scatter(tensors[key], self._of(key))) for key in sorted(tensors)}
        load_optimizer_tensors(optimizer, parts)

    def _of(self, key: str) -> Any:
        """Return the shards that a tensor of the optimizer belongs to, None for counters and for plain parameters."""
        name, _, slot = key.rpartition("/")
        return None if slot == "step" else self._shards.get(name)


def _scatter(tensor: Tensor, place: Tensor | None) -> Tensor:
    if not isinstance(place, DTensor):
        return tensor
    return distribute_tensor(tensor.to(place.device), place.device_mesh, place.placements)


def _outlive_the_shards(decoder: nn.Module, args: Any, outputs: dict[str, Any]) -> dict[str, Any]:
    """Make a decoder's outputs independent of its gathered weights, which are freed before they are used.

    A batch without boxes leaves the denoising embedding without a gradient, on that process only, and FSDP2 waits for
    the same gradients from all: so all parameters get a gradient, of zero if need be.
    """
    outputs = {name: value.clone() if isinstance(value, nn.Parameter) else value for name, value in outputs.items()}
    if torch.is_grad_enabled():
        trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        outputs["pred_logits"] = _Reaching.apply(outputs["pred_logits"], *trained)
    return outputs


class _Reaching(torch.autograd.Function):
    """The first argument, whose gradient also reaches the others: as zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.like = [(parameter.shape, parameter.dtype, parameter.device) for parameter in parameters]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)
