"""Distiller: teachers, injectors and modulator, bound to one student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

from vfmdistill.adapters import StudentAdapter, Tap
from vfmdistill.capture import Capture, device_of, probe_outputs
from vfmdistill.errors import CaptureError, DistillError, InputError, WeightsError
from vfmdistill.gradients import average_gradients, gradient_share
from vfmdistill.injector import SemanticInjector
from vfmdistill.modulator import FixedWeight, Modulator, Update
from vfmdistill.teacher import InputRange, Teacher


class Distiller:
    """What `attach` returns. As a context manager it removes its hooks on leaving, also by an exception.

    The semantic loss is the sum over teachers of their share times the mean over taps of the injector's objective.

    Attributes:
        student: the network being trained, without DDP or compile wrappers.
        teachers: the teachers by name.
        taps: the tapped modules.
        injectors: one injector for each teacher and tap, under "teacher:tap" with "/" for every ".".
        modulator: what decides λ.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, tuple[Teacher, float]],
        adapter: StudentAdapter,
        taps: Sequence[Tap],
        injectors: nn.ModuleDict,
        modulator: Modulator,
        input_range: InputRange,
    ) -> None:
        """Put the parts together; `attach` chooses and checks them.

        Args:
            student: the student, without wrappers.
            teachers: each teacher and its share of the semantic loss, by name.
            adapter: reads the taps.
            taps: modules of the student.
            injectors: by `injector_key`.
            modulator: decides λ.
            input_range: what the images hold, as in `Teacher.forward`.
        """
        self.student = student
        self.teachers = {name: teacher for name, (teacher, _) in teachers.items()}
        self.taps = tuple(taps)
        self.injectors = injectors
        self.modulator = modulator
        self._shares = {name: share for name, (_, share) in teachers.items()}
        self._adapter = adapter
        self._input_range = input_range
        self._device = device_of(student)
        self._measured: dict[str, Tensor] = {}
        self._lost = self._observed = False  # since the last update
        self._awaits_observe = False  # a backward went through the loss, and only this process knows its gradients
        self._versions: list[int] = []  # of the injectors' parameters at the last loss
        self._captures = [Capture(tap.module, lambda: student.training, tap.path) for tap in self.taps]

    @property
    def teacher(self) -> Teacher:
        """The only teacher.

        Raises:
            InputError: there are several; see `teachers`.
        """
        if len(self.teachers) > 1:
            raise InputError(f"there are several teachers: {', '.join(self.teachers)}. Choose one from `teachers`.")
        return next(iter(self.teachers.values()))

    @property
    def weight(self) -> float:
        """λ, what the semantic loss is multiplied with."""
        return self.modulator.weight

    def loss(self, images: Tensor) -> Tensor:
        """Return λ × the semantic loss of the student's latest training forward, a scalar.

        Args:
            images: (N, 3, H, W), the batch of that forward, in the `input_range` given to `attach`.

        Raises:
            CaptureError: the student has not run on a batch since the last loss, or not in training mode, or what came
                out of the tap is no map of these images.
            InputError: the images are no batch, or lie on another device than the student.
            DistillError: the distiller is detached, or several processes trained the injectors without `observe()`.
        """
        self._check_call(images)
        student_maps = [self._student_map(*tapped, images) for tapped in zip(self.taps, self._captures, strict=True)]
        teacher_maps: dict[tuple[str, torch.Size], Tensor] = {}
        total = torch.zeros((), device=self._device)
        for name, teacher in self.teachers.items():
            for tap, student_map in zip(self.taps, student_maps, strict=True):
                grid = student_map.shape[2:]
                if (name, grid) not in teacher_maps:
                    features = teacher(images, grid=tuple(grid), input_range=self._input_range)
                    teacher_maps[name, grid] = features.map
                value = self.injectors[injector_key(name, tap)](student_map, teacher_maps[name, grid])
                total = total + self._shares[name] / len(self.taps) * value
                if len(self.injectors) > 1:
                    self._measured[f"semantic_loss/{name}:{tap.path}"] = value.detach()
        self._measured["semantic_loss"] = total.detach()
        self._lost = True
        if total.requires_grad and _several_processes():
            total.register_hook(self._note_backward)
        return self.weight * total

    @torch.no_grad()
    def observe(self) -> None:
        """Read the share from the gradients; call it after every backward, before the optimizer's step.

        Where torch.distributed runs, it also averages the injectors' gradients over all processes, as DDP does for the
        student's, so every process must call it. The scale of the gradients (AMP, clipping) does not matter. Never
        reads the device.
        """
        injector_parameters = _trained(self.injectors)
        average_gradients(injector_parameters)
        tap_parameters = [parameter for tap in self.taps for parameter in _trained(tap.module)]
        share = gradient_share(tap_parameters, [*_trained(self.student), *injector_parameters])
        self.modulator.observe(share)
        self._measured["share"] = share
        self._observed = True
        self._awaits_observe = False

    def discard(self) -> None:
        """Forget the latest loss and its gradients: they are thrown away, for example because they are not finite.

        For steps that are given up after `backward()` and before `observe()`; λ learns nothing from them.
        """
        self._awaits_observe = False
        self._lost = self._lost and self._observed

    def update(self) -> Update:
        """Move λ by the shares since the last update, once per epoch in the reference; the same on every process.

        Raises:
            DistillError: losses were computed since the last update and none was observed.
        """
        if self._lost and not self._observed and not isinstance(self.modulator, FixedWeight):
            raise DistillError(
                "update() without observe(): no share has been seen since the last update. Call distiller.observe() "
                "after every loss.backward(), or attach with a number as modulator for a fixed λ."
            )
        self._lost = self._observed = False
        return self.modulator.update()

    def finish_adapting(self) -> None:
        """From the next update on λ is the modulator's default: the last stage of the reference's recipe."""
        self.modulator.finish_adapting()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the injectors' parameters, for the optimizer."""
        return self.injectors.parameters()

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the injectors' parameters with names that begin with "injectors."."""
        return self.injectors.named_parameters(prefix="injectors")

    def aligned_maps(self, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what the injectors compare, by their names: the projected student map and the teacher map.

        For pictures and probes: the student runs in eval mode, without gradient, and is left as it was. Works after
        `detach()` too.

        Args:
            images: (N, 3, H, W), as for `loss`, on the student's device.

        Returns:
            Injector name → two maps (N, D, h, w) on the same grid.
        """
        with torch.no_grad():
            outputs = probe_outputs(self.student, {tap.path: tap.module for tap in self.taps}, images)
            maps = {}
            for name, teacher in self.teachers.items():
                for tap in self.taps:
                    student_map = self._adapter.feature_map(tap, outputs[tap.path], images)
                    grid = (student_map.shape[2], student_map.shape[3])
                    injector = cast(SemanticInjector, self.injectors[injector_key(name, tap)])
                    features = teacher(images, grid=grid, input_range=self._input_range)
                    maps[injector_key(name, tap)] = (injector.project(student_map), features.map)
        return maps

    def metrics(self) -> dict[str, float]:
        """Return the latest figures. Reads the device: for printing, not for every step.

        "weight" is λ, "semantic_loss" the loss before λ, "share" in percent; the last two from the first `loss()` and
        `observe()` on. With several teachers or taps also "semantic_loss/TEACHER:TAP".
        """
        measured = self._measured
        values = torch.stack([value.float() for value in measured.values()]).tolist() if measured else []
        return {"weight": self.weight, **dict(zip(measured, values, strict=True))}

    def state_dict(self) -> dict[str, Any]:
        """Return {"injectors": tensors by name, "modulator": JSON-able values}; never the teacher. Reads the device."""
        return {"injectors": dict(self.injectors.state_dict()), "modulator": self.modulator.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from, exactly.

        Raises:
            WeightsError: the state belongs to other teachers, taps, injectors or another kind of modulator.
        """
        if state.keys() != {"injectors", "modulator"}:
            raise WeightsError(f"a distiller state with {sorted(state)}; expected 'injectors' and 'modulator'.")
        given, own = state["injectors"], self.injectors.state_dict()
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
        self.modulator.load_state_dict(state["modulator"])
        self.injectors.load_state_dict(given)
        self._awaits_observe = False

    def detach(self) -> None:
        """Remove every hook from the student. May be called again; all but `loss` goes on working."""
        for capture in self._captures:
            capture.remove()
        self._captures = []

    def __enter__(self) -> Distiller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def _check_call(self, images: Tensor) -> None:
        if not self._captures:
            raise DistillError("loss() after detach(): the hooks are gone. Attach again to go on distilling.")
        if not isinstance(images, Tensor) or images.ndim != 4:
            given = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise InputError(f"images: {given}; expected one tensor (N, 3, H, W), the batch that the student saw.")
        if images.device != self._device:
            raise InputError(
                f"images on {images.device}, but the student was on {self._device} when attached. Move the images to "
                "it; if the student has moved since, attach after moving it."
            )
        if not self.student.training:
            raise CaptureError(
                "loss() with the student in eval mode; only training forwards are captured. Call student.train() and "
                "run the student on the batch first."
            )
        self._check_observed()

    def _check_observed(self) -> None:
        """Raise where an optimizer has seen gradients that the processes have not averaged.

        Its step shows in the parameters' versions, or, as fused optimizers do not count those up, in gradients that
        are gone.
        """
        parameters = _trained(self.injectors)
        versions = [parameter._version for parameter in parameters]
        used = versions != self._versions or all(parameter.grad is None for parameter in parameters)
        self._versions = versions
        if parameters and self._awaits_observe and used:
            raise DistillError(
                "gradients were used without observe(), where the processes average those of the injectors, so the "
                "injectors now differ between processes. Call distiller.observe() after every loss.backward()."
            )

    def _note_backward(self, gradient: Tensor) -> None:
        self._awaits_observe = True

    def _student_map(self, tap: Tap, capture: Capture, images: Tensor) -> Tensor:
        """Return what the tap put out as a checked map (N, C, h, w)."""
        feature_map = self._adapter.feature_map(tap, capture.take(), images)
        if feature_map.ndim != 4 or feature_map.shape[0] != images.shape[0]:
            raise CaptureError(
                f"tap {tap.path!r} gave a map of shape {tuple(feature_map.shape)} for images {tuple(images.shape)}; "
                f"expected ({images.shape[0]}, C, h, w). Pass the batch of the student's latest forward."
            )
        if feature_map.device != self._device:
            raise CaptureError(
                f"tap {tap.path!r} gave a map on {feature_map.device}, but the student was on {self._device} when "
                "attached. Attach after moving it."
            )
        if not feature_map.requires_grad:
            raise CaptureError(
                f"the map read from tap {tap.path!r} carries no gradient. The adapter's feature_map() must not detach."
            )
        return feature_map


def injector_key(teacher: str, tap: Tap) -> str:
    """Return the name in `Distiller.injectors` of the injector between a teacher and a tap."""
    return f"{teacher}:{tap.path}".replace(".", "/")  # module names hold no dots


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
