"""attach: the one place that knows all parts and fits them to a student."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from vfmdistill.adapters import StudentAdapter, Tap
from vfmdistill.capture import device_of, untouched
from vfmdistill.distiller import Distiller
from vfmdistill.errors import InputError
from vfmdistill.fixed_weight import FixedWeight
from vfmdistill.injector import SemanticInjector
from vfmdistill.injectors import build_injectors
from vfmdistill.modulation import Modulation
from vfmdistill.modulator import GradientModulator
from vfmdistill.overlap import choose_stream
from vfmdistill.probing import check_student, checked_probe, probe_images, unwrapped
from vfmdistill.steps import Steps
from vfmdistill.student_maps import StudentMaps
from vfmdistill.tapping import adapter_and_taps, student_dims
from vfmdistill.teacher import InputRange, Teacher, check_input_range
from vfmdistill.teaching import Teaching
from vfmdistill.trained import trained
from vfmdistill.update import Modulator

TeacherSource = str | nn.Module


def attach(
    student: nn.Module,
    teacher: TeacherSource | Mapping[Any, float],
    *,
    tap: str | Sequence[str] | Mapping[str, float] | None = None,
    adapter: StudentAdapter | None = None,
    injector: SemanticInjector | Callable[[int, int], nn.Module] | None = None,
    modulator: Modulator | float | Mapping[str, Modulator | float] | None = None,
    input_range: InputRange = "unit",
    every: int = 1,
    overlap: bool | None = None,
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
            with their shares of the semantic loss, which are divided by their sum. Several are brought to one scale
            (`FeatureBalance`), and each gets an injector of its own.
        tap: the path of the module to align; several, each with an injector of its own; or a mapping from paths to
            their shares of the semantic loss, which are divided by their sum. None leaves it to the adapter, and where
            there is none takes what `inspect` chooses, with a warning that says what.
        adapter: reads the taps; None takes the student itself if it has the two methods of `StudentAdapter`, else a
            registered adapter that matches, else one that is built in for students of timm, torchvision, transformers,
            Ultralytics or segmentation-models-pytorch, else reads the tap by what it puts out (`ByPathAdapter`).
        injector: a `SemanticInjector` for the only teacher and tap, or a function that makes one from
            (student_dim, teacher_dim), like `functools.partial(SemanticInjector, objective="mse")`. None is the
            reference's: a linear projector and the cosine.
        modulator: decides λ; a number is a fixed λ. None is `GradientModulator(rho="auto")`: λ 5 for two updates, in
            which the share to keep is measured. A mapping from the teachers' names gives each its own λ, steered by
            its part of the share (`Modulation`).
        input_range: what the images given to `Distiller.loss` hold: "unit" (RGB in [0, 1]), "imagenet" (normalised by
            its mean and standard deviation), "uint8", or a pair (mean, std).
        every: the teachers look at the first of so many steps; on the others the semantic loss is 0, so that with the
            same λ the pull is as many times weaker.
        overlap: on CUDA the teachers start when the student gets its images, on a stream beside it, if `loss` is given
            the very tensor that the student was (else they run in `loss`, as on other devices); False turns that off.
            A student that is compiled after attaching runs without.
        probe: a batch (N, 3, H, W) that the student can take, at best like those it will see; None is one image of
            zeros, 224 × 224.

    Raises:
        UnknownNameError: no such teacher or tap; the message lists the nearest.
        InputError: an argument does not fit; the student fails on the probe; no tap is given and none can be found.
        CaptureError: the tap does not fire, or gives nothing that can be read as a map.

    Warns:
        UserWarning: no tap is given and no adapter knows the student; it says which one is taken, and why.
    """
    check_input_range(input_range)
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise InputError(f"every={every!r}; expected 1 (the teachers look at every step) or a larger whole number.")
    core = unwrapped(student)
    if next(core.parameters(), None) is None:
        raise InputError("the student has no parameters, so there is nothing to distil into.")
    check_student(core)
    if not (tap is None or isinstance(tap, str | Sequence | Mapping)):
        raise InputError(f"tap: a {type(tap).__name__}; expected a module path, several, or a mapping to their shares.")
    device = device_of(core)
    stream = choose_stream(overlap, device)
    with untouched(core):
        images = probe_images(core) if probe is None else checked_probe(probe)
        tap_shares = _shares(tap, "tap") if isinstance(tap, Mapping) else None
        adapter, taps = adapter_and_taps(core, adapter, list(tap) if isinstance(tap, Mapping) else tap, images)
        if not isinstance(modulator, Mapping):
            modulator = _modulator(modulator, taps)
        dims, overwritten = student_dims(core, adapter, taps, images)
        injectors = nn.ModuleDict()
        moved = partial(_moved, core, taps, injectors)
        teaching = Teaching(_teachers(teacher, core), input_range, device, every, Steps(moved))
        if isinstance(modulator, Mapping):
            modulator = _modulators(modulator, taps, teaching)
        injectors.update(build_injectors(injector, teaching.teachers, dict(zip(taps, dims, strict=True)), core))
    modulation = Modulation(modulator, teaching.shares, moved)
    maps = StudentMaps(core, adapter, taps, shares=tap_shares, channels=dims, clones=overwritten)
    distiller = Distiller(maps, teaching, injectors, modulation)
    if stream is not None:
        teaching.start_early(student, stream)
    return distiller


def _moved(student: nn.Module, taps: Sequence[Tap], injectors: nn.Module) -> list[nn.Parameter]:
    """Return what every loss trains, as it is now; of the student as a whole only where there is nothing else."""
    return trained(*(tap.module for tap in taps), injectors) or trained(student)


def _modulator(modulator: Modulator | float | None, taps: Sequence[Tap]) -> Modulator:
    if modulator is None:
        modulator = GradientModulator(rho="auto")
    elif isinstance(modulator, int | float):
        modulator = FixedWeight(modulator)
    elif not all(callable(getattr(modulator, method, None)) for method in ("observe", "update", "finish_adapting")):
        raise InputError(f"modulator={modulator!r}; expected a GradientModulator, a FixedWeight or a number.")
    if not isinstance(modulator, FixedWeight):
        for tap in taps:
            if not trained(tap.module):
                raise InputError(
                    f"tap {tap.path!r} ({type(tap.module).__name__}) has no trainable parameters, so its share of the "
                    "gradient cannot steer λ. Tap a module with parameters, or pass a number as modulator: a fixed λ."
                )
    return modulator


def _modulators(
    modulators: Mapping[str, Modulator | float], taps: Sequence[Tap], teaching: Teaching
) -> dict[str, Modulator]:
    """Return one modulator for each teacher, in the teachers' order."""
    if modulators.keys() != teaching.teachers.keys():
        raise InputError(
            f"modulators for {', '.join(map(repr, modulators)) or 'no teacher'}; expected one for each of "
            f"{', '.join(map(repr, teaching.teachers))}, or one modulator for all."
        )
    made = {name: _modulator(modulators[name], taps) for name in teaching.teachers}
    if len({id(modulator) for modulator in made.values()}) < len(made):
        raise InputError("one modulator under several names; give each teacher its own, or one for all, not a mapping.")
    return made


def _teachers(teacher: TeacherSource | Mapping[Any, float], student: nn.Module) -> dict[str, tuple[Teacher, float]]:
    """Return the teachers on the student's device, with shares that add up to 1, by different names."""
    sources: list[tuple[Any, float]] = list(teacher.items()) if isinstance(teacher, Mapping) else [(teacher, 1.0)]
    shares = _shares(dict(enumerate(share for _, share in sources)), "teacher")
    own = {id(parameter) for parameter in student.parameters()}
    teachers: dict[str, tuple[Teacher, float]] = {}
    for (source, _), share in zip(sources, shares, strict=True):
        if not isinstance(source, str | nn.Module):
            raise InputError(f"teacher: a {type(source).__name__}; expected a name, a Teacher or a torch.nn.Module.")
        if isinstance(source, nn.Module) and any(id(parameter) in own for parameter in source.parameters()):
            raise InputError("the teacher has parameters of the student, and teachers are frozen; give a deep copy.")
        built = source if isinstance(source, Teacher) else Teacher(source)
        name = built.spec.name
        count = 1
        while name in teachers:
            count += 1
            name = f"{built.spec.name}-{count}"
        teachers[name] = (built.to(device_of(student)), share)
    return teachers


def _shares(given: Mapping[Any, float], kind: str) -> list[float]:
    """Return shares of the semantic loss, divided by their sum."""
    shares = list(given.values())
    if not shares or not all(_is_number(share) and math.isfinite(share) and share > 0 for share in shares):
        raise InputError(f"{kind} shares {shares}; expected one or more finite numbers above 0.")
    return [share / sum(shares) for share in shares]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
