"""Engine: where a run computes — devices, processes, precision. The only file that knows accelerate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from vfmdistill.errors import InputError

from .checkpoint import load_optimizer_tensors, optimizer_tensors
from .recipe import Recipe

Model = TypeVar("Model", bound=nn.Module)
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Runs a training step on whatever there is: the CPU, a GPU, several, several machines.

    Args:
        recipe: its `device`, `precision`, `sync_batch_norm`, `shard`, `compile` and `tracker` are used.

    Attributes:
        accelerator: accelerate's, for loaders and trackers.
        device: of this process.
        rank: number of this process, from 0.
        world: number of processes, over all machines.
        is_main: whether this is the process that writes, the first of the first machine.

    Raises:
        InputError: there is no such device, or it has no such precision.
    """

    def __init__(self, recipe: Recipe) -> None:
        if recipe.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu or auto")
        # The other processes wait while the first looks through the images.
        handlers = [InitProcessGroupKwargs(timeout=timedelta(hours=1))]
        self.accelerator = Accelerator(
            cpu=recipe.device == "cpu", mixed_precision="no", kwargs_handlers=handlers, log_with=recipe.tracker
        )
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        self._recipe = recipe
        self._dtype = DTYPES[recipe.precision]
        if recipe.precision == "fp16" and self.device.type == "cpu":
            raise InputError("precision fp16 needs an accelerator, and this run is on the CPU; use bf16 or fp32")
        self._scaler = torch.amp.GradScaler(self.device.type) if recipe.precision == "fp16" else None
        self._unscaled = False
        self._optimizer: torch.optim.Optimizer | None = None

    def place(self, model: Model) -> Model:
        """Bring a model to the device and, with several processes, synchronise its batch norms."""
        return model.to(self.device)

    def shard(self, model: nn.Module) -> None:
        """Split the weights over the processes, in place, if the recipe asks for it."""

    def whole(self, model: Model) -> AbstractContextManager[Model]:
        """Return a context in which a model has its whole weights, so that each process can run it by itself."""
        return nullcontext(model)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return the network to call in training, and the optimizer."""
        self._optimizer = optimizer
        if self.world == 1:
            return model, optimizer
        network = DistributedDataParallel(
            model,
            device_ids=None if self.device.type == "cpu" else [self.device],
            # A batch without boxes leaves the denoising embedding without a gradient, on that process only.
            find_unused_parameters=True,
            broadcast_buffers=False,
        )
        return network, optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context for the forward pass, in the recipe's precision."""
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def no_sync(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return a context for forward and backward of all parts of a batch but the last."""
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those that are there."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Scale the gradients down to an L2 norm of at most `max_norm`; return the norm that they had, 0-dim."""
        if self._scaler is not None:
            assert self._optimizer is not None
            self._scaler.unscale_(self._optimizer)
            self._unscaled = True
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def step(self) -> None:
        """Move the weights."""
        assert self._optimizer is not None
        if self._scaler is None:
            self._optimizer.step()
            return
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._unscaled = False

    def zero_grad(self) -> None:
        """Forget the gradients, and that they were unscaled where no step came of them."""
        assert self._optimizer is not None
        self._optimizer.zero_grad()
        if self._scaler is not None and self._unscaled:
            self._scaler.update(self._scaler.get_scale())
            self._unscaled = False

    @property
    def scale(self) -> float | None:
        """What the loss is multiplied with before the backward pass; None unless the precision is fp16."""
        return None if self._scaler is None else float(self._scaler.get_scale())

    def scaler_state(self) -> dict[str, Any] | None:
        """Return the state of the gradient scaler, JSON-able; None without one."""
        return None if self._scaler is None else self._scaler.state_dict()

    def load_scaler_state(self, state: Mapping[str, Any] | None) -> None:
        """Take over what `scaler_state` returned."""
        if self._scaler is not None and state is not None:
            self._scaler.load_state_dict(dict(state))

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return each flag, True where any process says so. Every process has to call it."""
        if self.world == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.uint8, device=self.device)
        distributed.all_reduce(votes, distributed.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def full_state(self, module: nn.Module) -> dict[str, Tensor]:
        """Return a module's state dict of whole tensors. Every process has to call it."""
        return dict(module.state_dict())

    def load_full_state(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `full_state` returned. Every process has to call it."""
        module.load_state_dict(tensors)

    def optimizer_tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the optimizer's whole tensors under "parameter name/slot". Every process has to call it."""
        return optimizer_tensors(optimizer)

    def load_optimizer_tensors(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `optimizer_tensors` returned. Every process has to call it."""
        load_optimizer_tensors(optimizer, tensors)

    @torch.no_grad()
    def share_statistics(self, *modules: nn.Module) -> None:
        """Give all processes the buffers of the first, where batch norms are not synchronised."""
        if self.world > 1:
            for module in modules:
                for buffer in module.buffers():
                    distributed.broadcast(buffer, src=0)
