"""What a student is probed by: the network without its wrappers, and an image where the user gives none."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from vfmdistill.errors import InputError


def probe_images(student: nn.Module, input_size: int | tuple[int, int] = 224) -> Tensor:
    """Return one image of zeros, on the device and of the type of the student's parameters.

    Args:
        student: the network.
        input_size: the length of a side, or (height, width).

    Raises:
        InputError: the student has no parameters in floating point, or the size is none.
    """
    size = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if len(size) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size):
        raise InputError(f"input_size={input_size!r}; expected whole numbers of pixels: a side, or (height, width).")
    parameter = next((p for p in student.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise InputError("the student has no floating-point parameters; pass a batch that it takes as probe=.")
    return torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype)


def checked_probe(probe: object) -> Tensor:
    """Return a probe that was given.

    Raises:
        InputError: it is no batch of images.
    """
    if not isinstance(probe, Tensor) or probe.ndim != 4:
        given = f"shape {tuple(probe.shape)}" if isinstance(probe, Tensor) else f"a {type(probe).__name__}"
        raise InputError(f"probe: {given}; expected a batch (N, 3, H, W) that the student takes, as its only argument.")
    return probe


def check_student(student: nn.Module) -> None:
    """Check that a student can be run, and be given back as it was.

    Raises:
        InputError: it has parameters that have no values yet, or cannot be trained.
    """
    tensors = [*student.parameters(), *student.buffers()]
    if any(is_lazy(tensor) for tensor in tensors):
        raise InputError("the student has layers that take their shape from the first batch. Run it on one first.")
    if any(tensor.is_meta for tensor in tensors):
        raise InputError("a student on the meta device; expected one with values. Materialise it first.")
    if torch.is_inference_mode_enabled() or any(tensor.is_inference() for tensor in tensors):
        raise InputError("a student in inference mode, which leaves no gradients. Build it and attach outside of it.")


def unwrapped(student: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel and torch.compile.

    Raises:
        InputError: the student is no module, or wrapped in a way that feeds no tap.
    """
    if not isinstance(student, nn.Module):
        raise InputError(f"student: a {type(student).__name__}; expected a torch.nn.Module.")
    if isinstance(student, torch.jit.ScriptModule):
        raise InputError("student: a ScriptModule, whose parts are not called from Python; script it after training.")
    if isinstance(student, nn.DataParallel):
        raise InputError("student: nn.DataParallel runs copies, which feed no tap; use DistributedDataParallel.")
    if isinstance(student, nn.parallel.DistributedDataParallel):
        return unwrapped(student.module)
    original = student._modules.get("_orig_mod")  # torch.compile(module) keeps the module there
    return student if original is None else unwrapped(original)
