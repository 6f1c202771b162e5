"""The injectors of a distiller: one between each teacher and each tap."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, distributed, nn

from vfmdistill.adapters import Tap
from vfmdistill.errors import InputError, WeightsError
from vfmdistill.injector import SemanticInjector
from vfmdistill.teacher import Teacher


def build_injectors(
    injector: SemanticInjector | Callable[[int, int], nn.Module] | None,
    teachers: Mapping[str, Teacher],
    dims: Mapping[Tap, int],
    student: nn.Module,
) -> dict[str, nn.Module]:
    """Return one injector for each teacher and tap, in float32 at least, the same on every process."""
    pairs = [(name, teacher, tap) for name, teacher in teachers.items() for tap in dims]
    if isinstance(injector, SemanticInjector):
        widths = [(dims[tap], teacher.embed_dim) for _, teacher, tap in pairs]
        if widths != [(injector.student_dim, injector.teacher_dim)]:
            raise InputError(
                f"an injector from {injector.student_dim} to {injector.teacher_dim} channels, but student and teacher "
                f"have {widths}. Pass a function (student_dim, teacher_dim) -> SemanticInjector."
            )
        made: dict[str, nn.Module] = {injector_key(name, tap): injector for name, _, tap in pairs}
    elif isinstance(injector, nn.Module) or not (injector is None or callable(injector)):
        raise InputError(
            f"injector: a {type(injector).__name__}; expected a SemanticInjector or a function (student_dim, "
            "teacher_dim) -> SemanticInjector."
        )
    else:
        make = SemanticInjector if injector is None else injector
        made = {injector_key(name, tap): make(dims[tap], teacher.embed_dim) for name, teacher, tap in pairs}
    parameter = next(student.parameters())
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    injectors = nn.ModuleDict(made).to(parameter.device, dtype)
    if distributed.is_available() and distributed.is_initialized():
        for tensor in (*injectors.parameters(), *injectors.buffers()):
            distributed.broadcast(tensor.detach(), src=0)
    return dict(injectors.items())


def injector_key(teacher: str, tap: Tap) -> str:
    """Return the name in `Distiller.injectors` of the injector between a teacher and a tap."""
    return f"{teacher}:{tap.path}".replace(".", "/")  # module names hold no dots


def check_tensors(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Raise a WeightsError that names every key of a state that is missing, unexpected or of another shape.

    Args:
        given: the state that is to be loaded.
        own: that of the injectors which shall receive it.
    """
    wrong = [f"missing {key}" for key in own if key not in given]
    wrong += [f"unexpected {key}" for key in given if key not in own]
    wrong += [
        f"{key} is {tuple(given[key].shape)} where {tuple(own[key].shape)} is expected"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    if wrong:
        raise WeightsError(
            f"the state does not fit these injectors: {'; '.join(wrong)}. Attach with the teachers, taps and "
            "injectors that it was saved from."
        )
