"""Engine: where a run computes — devices, processes, precision. The only file that knows accelerate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from inspect import signature
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from vfmdistill.errors import DistillError, InputError

from . import sharding
from .checkpoint import load_optimizer_tensors, optimizer_tensors
from .compiled import compile_parts
from .launch_checks import check_device, check_launcher
from .recipe import Recipe
from .sync_batch_norm import synchronise_batch_norms

Model = TypeVar("Model", bound=nn.Module)
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Computes on whatever there is: the CPU, a GPU, several, those of several machines.

    The order of calls is `place`, `shard`, `prepare`, and then for each step forward passes in `autocast`, `backward`,
    `clip`, `step`, `zero_grad`. Where there are several processes, every one makes the same calls.

    Args:
        recipe: its `device`, `precision`, `sync_batch_norm`, `shard`, `compile`, `multi_scale` and `tracker` are used.

    Attributes:
        accelerator: accelerate's, for loaders and trackers.
        device: of this process.
        rank: number of this process among those of all machines, from 0.
        world: number of processes of all machines.
        is_main: whether this is the process that writes files, the first of the first machine.

    Raises:
        InputError: there is no such device, it has no such precision, or the launcher was told otherwise.
    """

    def __init__(self, recipe: Recipe) -> None:
        check_launcher(recipe)
        try:
            self.accelerator = Accelerator(
                cpu=recipe.device == "cpu",
                mixed_precision="no",  # autocast and loss scaling are done here, for sharded networks too
                log_with=recipe.tracker,
                # The other processes wait while the first looks through the images.
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=1))],
            )
        except ValueError as error:  # accelerate keeps one device for the life of a process
            raise InputError(f"device {recipe.device!r} cannot be had: {error}") from error
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes
        self.is_main: bool = self.accelerator.is_main_process
        check_device(recipe, self.device, self.world)
        self._recipe = recipe
        self._dtype = DTYPES[recipe.precision]
        self._mesh: DeviceMesh | None = None
        if recipe.shard and self.world > 1:
            self._mesh = init_device_mesh(self.device.type, (self.world,))
        self._scaler = torch.amp.GradScaler(self.device.type) if recipe.precision == "fp16" else None
        self._unscaled = False  # gradients, since the last step
        self._optimizer: torch.optim.Optimizer | None = None
        self._local: sharding.LocalParameters | None = None

    def place(self, model: Model) -> Model:
        """Bring a model to the device, with the first process's weights; synchronise its batch norms if asked to."""
        model = model.to(self.device)
        if self.world > 1:
            self._share([*model.parameters(), *model.buffers()])
            if self._recipe.sync_batch_norm:
                model = synchronise_batch_norms(model, self.device)
        return model

    def shard(self, model: nn.Module) -> None:
        """Split a model's weights over the processes, in place, if the recipe asks for it and there are several.

        A model without trained parameters is only kept in shards, and can be run inside of `whole`.
        """
        if self._mesh is not None:
            sharding.shard(model, self._mesh)

    def whole(self, model: Model) -> AbstractContextManager[Model]:
        """Return a context in which a model without trained parameters has its whole weights in every process."""
        return sharding.whole(model)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Return the network to call in training, and the optimizer, which must be fresh.

        A compiled network is compiled in place and part by part, and only where it is `model`: copies made before are
        not. What a distiller has hooked to it before is part of what is compiled.
        """
        self._optimizer = optimizer
        if self._recipe.compile:
            compile_parts(model, dynamic=True if self._recipe.multi_scale is not None else None)
        if self._mesh is not None:
            self._local = sharding.LocalParameters(optimizer)
            return model, optimizer
        if self.world == 1:
            return model, optimizer
        # Statistics are the same everywhere, or shared when they are needed. Newer versions of torch rename the option.
        known = signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        unsynchronised: dict[str, Any] = {option: False}
        network = DistributedDataParallel(
            model,
            device_ids=None if self.device.type == "cpu" else [self.device],
            # A batch without boxes leaves the denoising embedding without a gradient, on that process only.
            find_unused_parameters=True,
            # That also moves its messages, whose order among those of the batch norms would differ then.
            process_group=distributed.new_group(),
            **unsynchronised,
        )
        return network, optimizer

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context for forward passes, in the recipe's precision."""
        return torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None)

    def no_sync(self, network: nn.Module) -> AbstractContextManager[Any]:
        """Return a context for forward and backward of all parts of a batch but the last.

        Sharded networks exchange every part's gradients: what waited for the last would be kept whole.
        """
        return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those that are there."""
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    @torch.no_grad()
    def clip(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Scale gradients down to an L2 norm of at most `max_norm`, together; return the norm that they had, 0-dim.

        In fp16 this also takes the scale of the loss out of them: call it once in a step, with all trained parameters.
        Nothing is read from the device.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = sharding.total_norm(gradients).to(self.device)
        if self._scaler is not None:
            norm = norm / self._scaler.scale(torch.ones_like(norm))
        factor = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        if self._scaler is not None:
            # A process with a shard that did not overflow has to skip the step together with the others.
            factor = torch.where(norm.isfinite(), factor, torch.full_like(factor, torch.nan))
        if gradients:
            torch._foreach_mul_([sharding.local(gradient) for gradient in gradients], factor)
        if self._scaler is not None:
            self._follow_shards()
            self._scaler.unscale_(self._prepared())
            self._unscaled = True
        return norm

    def step(self) -> None:
        """Move the weights; in fp16 only where no gradient overflowed, and find a better scale of the loss."""
        self._follow_shards()
        if self._scaler is None:
            self._prepared().step()
            return
        self._scaler.step(self._prepared())
        self._scaler.update()
        self._unscaled = False

    def zero_grad(self) -> None:
        """Forget the gradients, also those of a step that was not done."""
        self._prepared().zero_grad()
        if self._local is not None:
            self._local.zero_grad()
        if self._scaler is not None and self._unscaled:
            self._scaler.update(self._scaler.get_scale())
            self._unscaled = False

    @property
    def scale(self) -> float | None:
        """What the loss is multiplied with before the backward pass; None unless the precision is fp16.

        Reads the device.
        """
        return None if self._scaler is None else float(self._scaler.get_scale())

    def scaler_state(self) -> dict[str, Any] | None:
        """Return the state of the loss's scale as JSON-able values; None unless the precision is fp16."""
        return None if self._scaler is None else self._scaler.state_dict()

    def load_scaler_state(self, state: Mapping[str, Any] | None) -> None:
        """Take over what `scaler_state` returned."""
        if self._scaler is not None and state is not None:
            self._scaler.load_state_dict(dict(state))

    def wait(self) -> None:
        """Wait until the device has done all that it was given, for whoever looks at the clock."""
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize()

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return each flag, True where any process says so."""
        if self.world == 1:
            return flags
        votes = torch.tensor(flags, dtype=torch.uint8, device=self.device)
        distributed.all_reduce(votes, distributed.ReduceOp.MAX)
        return tuple(bool(vote) for vote in votes.tolist())

    def full_state(self, module: nn.Module) -> dict[str, Tensor]:
        """Return a module's state dict, of whole tensors."""
        return sharding.gathered(module.state_dict())

    def load_full_state(self, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `full_state` returned."""
        module.load_state_dict(sharding.scattered(tensors, module.state_dict()))

    def optimizer_tensors(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the optimizer's tensors, whole, as `checkpoint.optimizer_tensors` does."""
        return optimizer_tensors(optimizer) if self._local is None else self._local.gathered(optimizer)

    def load_optimizer_tensors(self, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `optimizer_tensors` returned.

        Raises:
            InputError: the tensors belong to other parameters.
        """
        if self._local is None:
            load_optimizer_tensors(optimizer, tensors)
        else:
            self._local.load(optimizer, tensors)

    def share_statistics(self, *modules: nn.Module) -> None:
        """Give all processes the buffers of the first: running statistics, where batch norms are not synchronised."""
        self._share([buffer for module in modules for buffer in module.buffers()])

    @torch.no_grad()
    def _share(self, tensors: Iterable[Tensor]) -> None:
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def _follow_shards(self) -> None:
        if self._local is not None:
            self._local.follow()

    def _prepared(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            raise DistillError("the engine has no optimizer yet: call prepare(model, optimizer) first.")
        return self._optimizer
