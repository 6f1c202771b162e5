"""Capture: takes a module's output in training forwards, and `probe_outputs`: takes outputs once, leaving no trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill.errors import CaptureError, InputError
from vfmdistill.hooks import ForwardHook
from vfmdistill.in_place import changed, cloned, versions_of
from vfmdistill.sharding import reshard


class Capture:
    """Holds the output of a module's latest training forward until it is taken.

    Only forwards with `is_training()` and gradients enabled count, and the latest one wins: also of a module that the
    student calls several times in one forward. What activation checkpointing computes again in the backward pass does
    not count, nor what a copy of the module computes (`ForwardHook`).

    Args:
        module: the module to watch; it must be called, not only its `forward`.
        is_training: whether a forward is a training forward.
        name: how error messages call the module.
        clones: keep a copy, since what follows changes the output in place.
    """

    def __init__(
        self, module: nn.Module, is_training: Callable[[], bool], name: str = "", *, clones: bool = False
    ) -> None:
        self.name = name or type(module).__name__
        self._clones = clones
        self._versions: list[tuple[Tensor, int]] = []
        self._output: Any = None
        self._nothing = _NO_FORWARD
        self._is_training = is_training
        self._hook = ForwardHook(module, self._store)

    def take(self) -> Any:
        """Return the captured output and forget it.

        Raises:
            CaptureError: there is none since the last take; the message says why.
        """
        output, self._output = self._output, None
        reason, self._nothing = self._nothing, _NO_FORWARD
        if output is None:
            raise CaptureError(f"tap {self.name!r} gave nothing since the last loss: {reason}")
        noted, self._versions = self._versions, []
        if changed(noted):
            raise CaptureError(
                f"what tap {self.name!r} gave was changed in place by what follows it, though not when attached. Tap "
                "the module that changes it, or let that work with inplace=False."
            )
        return output

    def forget(self) -> None:
        """Forget what was captured."""
        self._output, self._nothing, self._versions = None, _NO_FORWARD, []

    def remove(self) -> None:
        """Take the hook off the module and forget what was captured. May be called again."""
        self._hook.remove()
        self.forget()

    def _store(self, args: Any, output: Any) -> None:
        """Keep an output of the module if it can be trained on, else the reason why not."""
        if not self._is_training():
            self._nothing = "the student ran in eval mode. Call student.train() before the training forward."
        elif not torch.is_grad_enabled():
            self._nothing = (
                "the student ran without gradients (no_grad, inference_mode, or checkpointing with "
                "use_reentrant=True). Run it with gradients, and checkpoint with use_reentrant=False."
            )
        elif not _carries_gradient(output):
            self._nothing = (
                "its output carries no gradient. Nothing up to it is trained: unfreeze it, or tap a later module."
            )
        else:
            self._output = cloned(output) if self._clones else output
            if not torch.compiler.is_compiling():
                self._versions = versions_of(self._output)


@contextmanager
def untouched(student: nn.Module) -> Iterator[None]:
    """On leaving, also by an exception, give back attributes, hooks, buffers and RNG states as they were on entering.

    Attributes are those of every module, training flags among them; what they refer to is not copied.
    """
    device = device_of(student)
    reshard(student)  # or whole parameters would be put back in the place of shards
    modules = list(student.modules())
    flags = [(module, module.training) for module in modules]
    attributes = [(module, dict(vars(module))) for module in modules]
    # Networks of transformers, for one, set up hooks in their first forward, and note that they did.
    tables = [table for module in modules for name, table in vars(module).items() if _is_table(name, table)]
    entries = [(table, dict(table)) for table in tables]
    unsaved = [
        (names, set(names)) for m in modules if (names := vars(m).get("_non_persistent_buffers_set")) is not None
    ]
    values = [(buffer, buffer._version, buffer.detach().clone()) for buffer in student.buffers()]
    cpu_state = torch.get_rng_state()
    accelerator = None if device.type in ("cpu", "meta") else torch.get_device_module(device)
    place = () if device.type == "mps" else (device,)  # mps is one device and takes no index
    accelerator_state = accelerator.get_rng_state(*place) if accelerator else None
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
        for module, before in attributes:  # some networks note in a forward what they have seen
            for name in vars(module).keys() - before.keys():
                del vars(module)[name]
            vars(module).update(before)
        for table, content in entries:
            if [(key, id(value)) for key, value in table.items()] != [
                (key, id(value)) for key, value in content.items()
            ]:
                table.clear()
                table.update(content)
        for names, former in unsaved:
            names &= former
        torch.set_rng_state(cpu_state)
        if accelerator:
            accelerator.set_rng_state(accelerator_state, *place)
        with torch.no_grad():
            for buffer, version, value in values:
                # Batch norms write their statistics without counting up the version.
                same = buffer._version == version and buffer.layout is torch.strided and torch.equal(buffer, value)
                if not same:
                    buffer.copy_(value)


def probe_outputs(
    student: nn.Module, modules: Mapping[str, nn.Module], images: Tensor, overwritten: set[str] | None = None
) -> dict[str, Any]:
    """Run the student once and return what the named modules put out, in the order in which they finished.

    The forward runs in eval mode, without gradients, and leaves the student as it was (`untouched`).

    Args:
        student: the student, not wrapped.
        modules: the modules to watch by name; one that does not run is missing from the result.
        images: (N, 3, H, W), what the student takes.
        overwritten: receives the names of those whose output was changed in place after them.

    Raises:
        InputError: the student cannot take these images.
    """
    outputs: dict[str, Any] = {}
    versions: dict[str, list[tuple[Tensor, int]]] = {}
    with untouched(student), ExitStack() as hooks:
        for name, module in modules.items():

            def keep(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                outputs.pop(name, None)
                outputs[name] = output
                if overwritten is not None:
                    versions[name] = versions_of(output)

            hooks.callback(module.register_forward_hook(keep).remove)
        hooks.callback(reshard, student)
        for module in student.modules():
            module.training = False  # not eval(), which some networks override to merge weights
        try:
            # Code that was compiled before would run on without these hooks.
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                student(images)
        except Exception as error:
            raise InputError(
                f"the student failed on a probe of shape {tuple(images.shape)} and type {images.dtype} "
                f"({type(error).__name__}: {error}). Pass a batch that it takes as probe= to attach()."
            ) from error
    if overwritten is not None:
        overwritten.update(name for name, noted in versions.items() if changed(noted))
    return outputs


def device_of(module: nn.Module) -> torch.device:
    """Return the device of the module's first parameter or buffer, the CPU where it has neither."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


_NO_FORWARD = (
    "its module was not called. Run the student on the batch before every loss. A student that was compiled and run "
    "before attaching goes on without the tap: attach earlier, or call torch.compiler.reset() once attached. A module "
    "of which only forward() is called cannot be tapped."
)


def _is_table(name: str, value: object) -> bool:
    """Whether an attribute of a module is its parameters, buffers, modules or hooks by key."""
    return isinstance(value, dict) and (name in ("_parameters", "_buffers", "_modules") or "_hooks" in name)


def _carries_gradient(output: Any) -> bool:
    """Whether a tensor somewhere in the output requires a gradient; of unknown containers that is assumed."""
    if isinstance(output, Tensor):
        return output.requires_grad
    if isinstance(output, Mapping):
        return any(_carries_gradient(value) for value in output.values())
    if isinstance(output, list | tuple):
        return any(_carries_gradient(value) for value in output)
    return output is not None
