"""attach: the one place that knows all parts and fits them to a student."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from vfmdistill.adapters import ByPathAdapter, StudentAdapter, Tap, check_adapter, find_adapter
from vfmdistill.capture import device_of, probe_outputs, untouched
from vfmdistill.distiller import Distiller, injector_key
from vfmdistill.errors import CaptureError, InputError
from vfmdistill.injector import SemanticInjector
from vfmdistill.modulator import FixedWeight, GradientModulator, Modulator
from vfmdistill.teacher import InputRange, Teacher, check_input_range

TeacherSource = str | nn.Module


def attach(
    student: nn.Module,
    teacher: TeacherSource | Mapping[Any, float],
    *,
    tap: str | Sequence[str] | None = None,
    adapter: StudentAdapter | None = None,
    injector: SemanticInjector | Callable[[int, int], nn.Module] | None = None,
    modulator: Modulator | float | None = None,
    input_range: InputRange = "unit",
    probe: Tensor | None = None,
) -> Distiller:
    """Bind a frozen teacher to a student for training; nothing of it is left in the student afterwards.

    Everything is found and checked in this call, by one forward of a probe that leaves the student bit-identical
    (training flags, buffers, RNG states). The injectors are drawn from the global RNG, whose state is then given back,
    and are the same on every process. Where torch.distributed runs, every process must attach.

    ```python
    with vfmdistill.attach(student, teacher="dinov2_vitb14") as distiller:
        optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()])
        for images, targets in loader:
            loss = criterion(student(images), targets) + distiller.loss(images)
            loss.backward()
            distiller.observe()
            optimizer.step()
            optimizer.zero_grad()
        distiller.update()
    ```

    Args:
        student: the network to train, wrapped by DDP or torch.compile or not. Put it on its device first.
        teacher: a catalogue name, a `Teacher`, any module that maps (N, 3, H, W) to (N, C, h, w), or several of these
            with their shares of the semantic loss, which are divided by their sum.
        tap: the path of the module to align, or several; None leaves it to the adapter.
        adapter: reads the taps; None takes the student itself if it has the two methods of `StudentAdapter`, else a
            registered adapter that matches, else reads the given tap as a map or as tokens (`ByPathAdapter`).
        injector: a `SemanticInjector` for the only teacher and tap, or a function that makes one from
            (student_dim, teacher_dim), like `functools.partial(SemanticInjector, objective="mse")`. None is the
            reference's: a linear projector and the cosine.
        modulator: decides λ; a number is a fixed λ. None is `GradientModulator(rho="auto")`: λ 5 for two updates, in
            which the share to keep is measured.
        input_range: what the images given to `Distiller.loss` hold: "unit" (RGB in [0, 1]), "imagenet" (normalised by
            its mean and standard deviation), "uint8", or a pair (mean, std).
        probe: a batch (N, 3, H, W) that the student can take, at best like those it will see; None is one image of
            zeros, 224 × 224.

    Raises:
        UnknownNameError: no such teacher or tap; the message lists the nearest.
        InputError: an argument does not fit; the student fails on the probe; no tap is given and no adapter knows one.
        CaptureError: the tap does not fire, or gives nothing that can be read as a map.
    """
    check_input_range(input_range)
    core = _unwrapped(student)
    if next(core.parameters(), None) is None:
        raise InputError("the student has no parameters, so there is nothing to distil into.")
    with untouched(core):
        images = _probe_images(core) if probe is None else probe
        adapter, taps = _adapter_and_taps(core, adapter, tap, images)
        modulator = _modulator(modulator, taps)
        student_dims = _student_dims(core, adapter, taps, images)
        teachers = _teachers(teacher, core)
        injectors = _injectors(injector, teachers, dict(zip(taps, student_dims, strict=True)), core)
    return Distiller(core, teachers, adapter, taps, injectors, modulator, input_range)


def _unwrapped(student: nn.Module) -> nn.Module:
    if not isinstance(student, nn.Module):
        raise InputError(f"student: a {type(student).__name__}; expected a torch.nn.Module.")
    if isinstance(student, nn.DataParallel):
        raise InputError("student: nn.DataParallel runs copies, which feed no tap; use DistributedDataParallel.")
    if isinstance(student, nn.parallel.DistributedDataParallel):
        return _unwrapped(student.module)
    original = student._modules.get("_orig_mod")  # torch.compile(module) keeps the module there
    return student if original is None else _unwrapped(original)


def _probe_images(student: nn.Module) -> Tensor:
    parameter = next((p for p in student.parameters() if p.is_floating_point()), None)
    if parameter is None:
        raise InputError("the student has no floating-point parameters; pass a batch that it takes as probe=.")
    return torch.zeros(1, 3, 224, 224, device=parameter.device, dtype=parameter.dtype)


def _adapter_and_taps(
    student: nn.Module, adapter: StudentAdapter | None, tap: str | Sequence[str] | None, images: Tensor
) -> tuple[StudentAdapter, tuple[Tap, ...]]:
    if adapter is None:
        adapter = find_adapter(student)
    else:
        check_adapter(adapter)
    if tap is not None:
        by_path = ByPathAdapter([tap] if isinstance(tap, str) else tap)
        return by_path if adapter is None else adapter, by_path.taps(student)
    if adapter is None:
        raise InputError(
            f"no tap is given and no adapter knows a {type(student).__name__}. Pass tap=, the path of the module to "
            f"align{_candidates(student, images)}; or pass adapter=."
        )
    taps = tuple(adapter.taps(student))
    if not taps:
        raise InputError(f"the adapter {type(adapter).__name__} names no tap for a {type(student).__name__}.")
    return adapter, taps


def _candidates(student: nn.Module, images: Tensor) -> str:
    """Say which modules give maps of stride 16 to 32, the outermost first, then the deepest."""
    modules = {path: module for path, module in student.named_modules() if path}
    reader = ByPathAdapter(())
    found: list[tuple[str, str]] = []
    for path, output in probe_outputs(student, modules, images).items():
        try:
            _, channels, height, width = reader.feature_map(Tap(path, modules[path]), output, images).shape
        except CaptureError:
            continue
        if 16 <= images.shape[-2] / height <= 32:
            found.insert(0, (path, f"{path!r} ({channels} × {height} × {width})"))
    found.sort(key=lambda candidate: candidate[0].count("."))
    return f", for example {', '.join(text for _, text in found[:6])}" if found else ""


def _modulator(modulator: Modulator | float | None, taps: Sequence[Tap]) -> Modulator:
    if modulator is None:
        modulator = GradientModulator(rho="auto")
    elif isinstance(modulator, int | float):
        modulator = FixedWeight(modulator)
    elif not all(callable(getattr(modulator, method, None)) for method in ("observe", "update", "finish_adapting")):
        raise InputError(f"modulator={modulator!r}; expected a GradientModulator, a FixedWeight or a number.")
    if not isinstance(modulator, FixedWeight):
        for tap in taps:
            if not any(parameter.requires_grad for parameter in tap.module.parameters()):
                raise InputError(
                    f"tap {tap.path!r} ({type(tap.module).__name__}) has no trainable parameters, so its share of the "
                    "gradient cannot steer λ. Tap a module with parameters, or pass a number as modulator: a fixed λ."
                )
    return modulator


def _student_dims(student: nn.Module, adapter: StudentAdapter, taps: Sequence[Tap], images: Tensor) -> list[int]:
    """Return the channels of each tap's map, found by a forward of the images."""
    outputs = probe_outputs(student, {tap.path: tap.module for tap in taps}, images)
    silent = [tap.path for tap in taps if tap.path not in outputs]
    if silent:
        raise CaptureError(
            f"tap {silent[0]!r} did not fire when the student ran; expected a module that every forward calls (calling "
            "its forward() only is no call). Tap another module."
        )
    dims = []
    for tap in taps:
        feature_map = adapter.feature_map(tap, outputs[tap.path], images)
        if feature_map.ndim != 4 or feature_map.shape[0] != images.shape[0]:
            raise CaptureError(
                f"the adapter {type(adapter).__name__} read a tensor of shape {tuple(feature_map.shape)} from tap "
                f"{tap.path!r} for images {tuple(images.shape)}; expected a map ({images.shape[0]}, C, h, w)."
            )
        dims.append(feature_map.shape[1])
    return dims


def _teachers(teacher: TeacherSource | Mapping[Any, float], student: nn.Module) -> dict[str, tuple[Teacher, float]]:
    """Return the teachers on the student's device, with shares that add up to 1, by different names."""
    sources: list[tuple[Any, float]] = list(teacher.items()) if isinstance(teacher, Mapping) else [(teacher, 1.0)]
    shares = [share for _, share in sources]
    if not sources or not all(math.isfinite(share) and share > 0 for share in shares):
        raise InputError(f"teacher shares {shares}; expected one or more finite numbers above 0.")
    trained = {id(parameter) for parameter in student.parameters()}
    teachers: dict[str, tuple[Teacher, float]] = {}
    names: Counter[str] = Counter()
    for source, share in sources:
        if not isinstance(source, str | nn.Module):
            raise InputError(f"teacher: a {type(source).__name__}; expected a name, a Teacher or a torch.nn.Module.")
        if isinstance(source, nn.Module) and any(id(parameter) in trained for parameter in source.parameters()):
            raise InputError("the teacher has parameters of the student, and teachers are frozen; give a deep copy.")
        built = source if isinstance(source, Teacher) else Teacher(source)
        names[built.spec.name] += 1
        count = names[built.spec.name]
        name = built.spec.name if count == 1 else f"{built.spec.name}-{count}"
        teachers[name] = (built.to(device_of(student)), share / sum(shares))
    return teachers


def _injectors(
    injector: SemanticInjector | Callable[[int, int], nn.Module] | None,
    teachers: Mapping[str, tuple[Teacher, float]],
    student_dims: Mapping[Tap, int],
    student: nn.Module,
) -> nn.ModuleDict:
    """Return one injector for each teacher and tap, in float32 at least, the same on every process."""
    pairs = [(name, teacher, tap) for name, (teacher, _) in teachers.items() for tap in student_dims]
    if isinstance(injector, SemanticInjector):
        dims = [(student_dims[tap], teacher.embed_dim) for _, teacher, tap in pairs]
        if dims != [(injector.student_dim, injector.teacher_dim)]:
            raise InputError(
                f"an injector from {injector.student_dim} to {injector.teacher_dim} channels, but student and teacher "
                f"have {dims}. Pass a function (student_dim, teacher_dim) -> SemanticInjector."
            )
        made: dict[str, nn.Module] = {injector_key(name, tap): injector for name, _, tap in pairs}
    elif isinstance(injector, nn.Module) or not (injector is None or callable(injector)):
        raise InputError(
            f"injector: a {type(injector).__name__}; expected a SemanticInjector or a function (student_dim, "
            "teacher_dim) -> SemanticInjector."
        )
    else:
        make = SemanticInjector if injector is None else injector
        made = {injector_key(name, tap): make(student_dims[tap], teacher.embed_dim) for name, teacher, tap in pairs}
    parameter = next(student.parameters())
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    injectors = nn.ModuleDict(made).to(parameter.device, dtype)
    if distributed.is_available() and distributed.is_initialized():
        for tensor in (*injectors.parameters(), *injectors.buffers()):
            distributed.broadcast(tensor.detach(), src=0)
    return injectors
