"""Distiller: teachers, injectors and modulators, bound to one student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor, nn

from vfmdistill.errors import DistillError, InputError, WeightsError
from vfmdistill.gradients import average_gradients, gradient_share
from vfmdistill.injector import SemanticInjector
from vfmdistill.injectors import check_tensors, injector_key
from vfmdistill.layer_shares import layer_shares
from vfmdistill.modulation import Modulation
from vfmdistill.observation import Observation
from vfmdistill.sharding import left_whole
from vfmdistill.student_maps import StudentMaps
from vfmdistill.teacher import Teacher
from vfmdistill.teaching import Teaching
from vfmdistill.trained import trained
from vfmdistill.update import Modulator, Update


class Distiller:
    """What `attach` returns. As a context manager it removes its hooks on leaving, also by an exception.

    The semantic loss is the sum over teachers and taps of both their shares times the injector's objective.
    With several teachers their maps are brought to one scale first (`FeatureBalance`).

    Attributes:
        student: the network being trained, without DDP or compile wrappers.
        teachers: the teachers by name.
        taps: the tapped modules.
        injectors: one injector for each teacher and tap, under "teacher:tap" with "/" for every ".".
        modulators: what decides λ, by teacher; the same object for all unless each was given its own.
    """

    def __init__(
        self, student_maps: StudentMaps, teaching: Teaching, injectors: nn.ModuleDict, modulation: Modulation
    ) -> None:
        """Put the parts together; `attach` chooses and checks them.

        Args:
            student_maps: reads the student's taps.
            teaching: asks the teachers.
            injectors: by `injector_key`, for each teacher and tap.
            modulation: decides λ.
        """
        self.student = student_maps.student
        self.taps = student_maps.taps
        self.teachers = teaching.teachers
        self.injectors = injectors
        self.modulators = modulation.by_teacher
        self._student_maps = student_maps
        self._teaching = teaching
        self._modulation = modulation
        self._observation = Observation(trained(injectors), lambda: trained(*(tap.module for tap in self.taps)))
        self._measured: dict[str, Tensor] = {}

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
    def modulator(self) -> Modulator:
        """What decides λ for all teachers.

        Raises:
            InputError: each teacher has its own; see `modulators`.
        """
        if self._modulation.shared is None:
            raise InputError("each teacher has a modulator of its own. Choose one from `modulators`.")
        return self._modulation.shared

    @property
    def looks(self) -> bool:
        """Whether the teachers looked at the latest batch; with ``every=k`` they do not look at all."""
        return self._teaching.looks

    @property
    def weight(self) -> float:
        """λ, what the semantic loss is multiplied with; if each teacher has its own, their mean by shares."""
        return self._modulation.weight

    def loss(self, images: Tensor) -> Tensor:
        """Return λ × the semantic loss of the student's latest training forward, a scalar.

        Of several forwards before one loss only the last counts, and of several calls of the tap in one forward too;
        for a loss over all of them ask for one after each. DDP and FSDP2 need a loss that reaches all parameters: where
        there is no other one, add 0 × the student's outputs.

        With ``every=k`` it is 0 on all but the first of k steps, which then teach λ nothing. Losses between which
        there is neither `observe()` nor an optimizer's step belong to one step.

        Args:
            images: (N, 3, H, W), the batch of that forward, in the `input_range` given to `attach`.

        Raises:
            CaptureError: the student has not run on a batch since the last loss, or not in training mode, or what came
                out of the tap is no map of these images.
            InputError: the images are no batch, or lie on another device than the student, or the weights that the
                adapter gives the cells do not fit.
            DistillError: the distiller is detached, or several processes trained the injectors without `observe()`.
        """
        self._student_maps.check(images)
        self._observation.check()
        student_maps = self._student_maps.take(images)
        if not self._teaching.next_batch():
            self._observation.note_skip()
            skipped = torch.zeros((), device=images.device, requires_grad=True)  # backward() may be called on it alone
            self._teaching.follow(skipped)
            return skipped
        grids = [(student_map.shape[2], student_map.shape[3]) for student_map in student_maps]
        teacher_maps = self._teaching.maps(images, grids)
        values: dict[str, Tensor] = {name: torch.zeros((), device=images.device) for name in self.teachers}
        for tap, student_map, grid in zip(self.taps, student_maps, grids, strict=True):
            foreground = self._student_maps.foreground(tap, student_map, images)
            weights = () if foreground is None else (foreground,)
            for name, share in self._teaching.shares.items():
                watched = self._modulation.watched(name, student_map)
                value = self.injectors[injector_key(name, tap)](watched, teacher_maps[name, grid], *weights)
                values[name] = values[name] + share * self._student_maps.shares[tap] * value
                if len(self.injectors) > 1:
                    self._measured[f"semantic_loss/{name}:{tap.path}"] = value.detach()
        self._measured["semantic_loss"] = torch.stack(list(values.values())).sum().detach()
        loss = self._modulation.weighted(values)
        self._teaching.follow(loss)
        self._observation.note_loss(loss)
        return loss

    @torch.no_grad()
    def observe(self) -> None:
        """Read the share from the gradients; call it after the backward, before the optimizer's step.

        Where gradients are accumulated over several backward passes, call it after each or after the last: what counts
        is the share of the gradients that the optimizer uses. With ``every=k`` each call ends a step: then call it
        after the last.

        Where torch.distributed runs, it also averages the injectors' gradients over all processes, as DDP does for the
        student's, so every process must call it. The scale of the gradients (AMP, clipping) does not matter. Never
        reads the device. Where all losses since the last one were skipped by ``every=k``, it does nothing.

        Raises:
            DistillError: there is no gradient: no backward pass has been made, or its gradients are gone.
        """
        self._student_maps.forget()  # what compiled code within a checkpoint has captured a second time
        self._teaching.settle()
        if not self._observation.due:
            self._observation.done()
            return
        injector_parameters = trained(self.injectors)
        tap_parameters = trained(*(tap.module for tap in self.taps))
        self._observation.check_gradients([*tap_parameters, *injector_parameters])
        if not tap_parameters and self._modulation.adapts:
            raise DistillError(
                f"nothing is trained any more in {', '.join(repr(tap.path) for tap in self.taps)}, so its share of the "
                "gradient cannot steer λ. Attach again with a later tap, or with a number as modulator: a fixed λ."
            )
        average_gradients(injector_parameters)
        share = gradient_share(tap_parameters, [*trained(self.student), *injector_parameters])
        self._modulation.observe(share)
        self._measured["share"] = share
        self._observation.done(left_whole(self.student, self.taps))

    def discard(self) -> None:
        """Forget the latest loss and its gradients: they are thrown away, for example because they are not finite.

        For steps that are given up before the optimizer's step. From those that were not observed λ learns nothing;
        with ``every=k`` none of them counts. Where torch.distributed runs, every process must call it.
        """
        self._student_maps.forget()
        self._teaching.discard()
        self._modulation.forget()
        self._observation.discard()

    def update(self) -> Update:
        """Move λ by the shares since the last update, once per epoch in the reference; the same on every process.

        Raises:
            DistillError: losses were computed since the last update and none was observed.
        """
        if self._observation.missed and self._modulation.adapts:
            raise DistillError(
                "update() without observe(): no share has been seen since the last update. Call distiller.observe() "
                "after every loss.backward(), or attach with a number as modulator for a fixed λ."
            )
        self._observation.updated()
        return self._modulation.update()

    def finish_adapting(self) -> None:
        """From the next update on λ is the modulator's default: the last stage of the reference's recipe."""
        self._modulation.finish_adapting()

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
        maps = {}
        with torch.no_grad():
            for tap, student_map in zip(self.taps, self._student_maps.probe(images), strict=True):
                teacher_maps = self._teaching.maps_of(images, (student_map.shape[2], student_map.shape[3]))
                for name, teacher_map in teacher_maps.items():
                    injector = cast(SemanticInjector, self.injectors[injector_key(name, tap)])
                    maps[injector_key(name, tap)] = (injector.project(student_map), teacher_map)
        return {key: maps[key] for key in self.injectors}

    def layer_shares(self, depth: int = 1) -> dict[str, float]:
        """Return the share of each part of the student, and of "injectors", in percent; they add up to 100.

        From the gradients as they are: call it between the backward and the optimizer's step. Reads the device. Where
        gradients are sharded, every process must call it.

        Args:
            depth: components of a parameter's name that make its part, see `vfmdistill.layer_shares`.
        """
        return layer_shares(self.student, depth, {"injectors": trained(self.injectors)})

    def metrics(self) -> dict[str, float]:
        """Return the latest figures. Reads the device: for printing, not for every step.

        "weight" is λ, "semantic_loss" the loss before λ, "share" in percent; the last two from the first `loss()` and
        `observe()` on. With several teachers or taps also "semantic_loss/TEACHER:TAP", and if each teacher has its own
        λ "weight/TEACHER" and "share/TEACHER".
        """
        figures: dict[str, float | Tensor] = {**self._modulation.metrics(), **self._measured}
        measured = [value.float() for value in figures.values() if isinstance(value, Tensor)]
        read = iter(torch.stack(measured).tolist() if measured else [])
        return {key: next(read) if isinstance(value, Tensor) else value for key, value in figures.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return what training goes on from; never the teachers. Reads the device.

        Returns:
            "injectors": tensors by name; "modulator" and "teaching": JSON-able values.
        """
        return {
            "injectors": dict(self.injectors.state_dict()),
            "modulator": self._modulation.state_dict(),
            "teaching": self._teaching.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from, exactly; where that fails, stay what it is.

        Raises:
            WeightsError: the state belongs to other teachers, taps, injectors or other modulators.
        """
        expected = {"injectors", "modulator", "teaching"}
        if not isinstance(state, Mapping) or state.keys() != expected:
            given = f"with {sorted(state)}" if isinstance(state, Mapping) else f"of type {type(state).__name__}"
            raise WeightsError(f"a distiller state {given}; expected {sorted(expected)}.")
        check_tensors(state["injectors"], self.injectors.state_dict())
        teaching, modulator = self._teaching.state_dict(), self._modulation.state_dict()
        try:
            self._teaching.load_state_dict(state["teaching"])
            self._modulation.load_state_dict(state["modulator"])
        except Exception:
            self._teaching.load_state_dict(teaching)
            self._modulation.load_state_dict(modulator)
            raise
        self.injectors.load_state_dict(state["injectors"])
        self._modulation.begin_anew()
        self._observation.discard()

    def detach(self) -> None:
        """Remove every hook from the student. May be called again; all but `loss` goes on working."""
        self._student_maps.remove()
        self._teaching.stop()

    def __enter__(self) -> Distiller:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()
