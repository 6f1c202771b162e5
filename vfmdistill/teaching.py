"""Teaching: the teachers of a distiller, when they look at a batch, and what they say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vfmdistill.balance import FeatureBalance
from vfmdistill.errors import WeightsError
from vfmdistill.input_range import InputRange
from vfmdistill.overlap import Overlap, SideStream
from vfmdistill.steps import Steps
from vfmdistill.teacher import Teacher

Grid: TypeAlias = tuple[int, int]
TeacherMaps: TypeAlias = Mapping[tuple[str, Grid], Tensor]


class Teaching:
    """Gives each teacher's map on each grid, on every k-th step.

    Args:
        teachers: each teacher and its share of the semantic loss, by name.
        input_range: what the images hold, as in `Teacher.forward`.
        device: where the images lie.
        every: the teachers look at the first of so many steps.
        steps: tells which batches belong to one step.
    """

    def __init__(
        self,
        teachers: Mapping[str, tuple[Teacher, float]],
        input_range: InputRange,
        device: torch.device,
        every: int,
        steps: Steps,
    ) -> None:
        self.teachers = {name: teacher for name, (teacher, _) in teachers.items()}
        self.shares = {name: share for name, (_, share) in teachers.items()}
        self._balance = FeatureBalance(teachers, device) if len(teachers) > 1 else None
        self._input_range = input_range
        self.looks = False
        self._every = every
        self._steps = steps
        self._count = 0  # of steps
        self._before: tuple[int, Any] | None = None  # the latest step
        self._grids: dict[torch.Size, tuple[Grid, ...]] = {}  # by image size, as the student's maps were
        self._overlap: Overlap | None = None

    def start_early(self, student: nn.Module, stream: SideStream) -> None:
        """Run the teachers on a stream beside the forwards of the student, as it is called (wrapped), from here on."""
        self._overlap = Overlap(student, self._plan, stream)

    def stop(self) -> None:
        """Take what `start_early` put there off the student."""
        if self._overlap is not None:
            self._overlap.remove()

    def next_batch(self) -> bool:
        """Go to the next batch, and say whether the teachers look at it."""
        if self._steps.begins:
            self.looks = self._will_look
            if self._balance is not None:
                self._balance.settle_alone()
            self._before = (self._count, None if self._balance is None else self._balance.snapshot())
            self._count += 1
        self._steps.enter()
        return self.looks

    def follow(self, loss: Tensor) -> None:
        """Take notice when a backward pass goes through the loss of the batch."""
        self._steps.follow(loss)

    def maps(self, images: Tensor, grids: Sequence[Grid]) -> TeacherMaps:
        """Return the maps (N, C, h, w) that the loss compares, by teacher and grid, and learn their scale."""
        wanted = tuple(dict.fromkeys(grids))
        early = self._overlap.take(images) if self._overlap is not None else None
        if early is None or self._grids.get(images.shape[2:]) != wanted:
            early = self._run(images, wanted)
        self._grids[images.shape[2:]] = wanted
        if self._balance is not None:
            self._balance.add({name: early[name, wanted[0]] for name in self.teachers})
        return self._scaled(early)

    def settle(self) -> None:
        """End the step and keep what was learned in it; where torch.distributed runs, every process must call it."""
        self._steps.close()
        if self._balance is not None:
            self._balance.settle()

    def discard(self) -> None:
        """Be again as before the latest step, settled or not, unless an optimizer has taken it: it is given up."""
        if self._before is not None and (self._steps.open or not self._steps.taken):
            self._count, balance = self._before
            if self._balance is not None:
                self._balance.restore(balance)
        self._before = None
        self._steps.close()
        if self._overlap is not None:
            self._overlap.forget()

    def maps_of(self, images: Tensor, grid: Grid) -> dict[str, Tensor]:
        """Return the maps that the loss would compare on one grid by teacher, and learn nothing."""
        scaled = self._scaled(self._run(images, (grid,)))
        return {name: scaled[name, grid] for name in self.teachers}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the balance (None with one teacher), JSON-able. Reads the device."""
        if self._balance is not None and self._steps.begins:
            self._balance.settle_alone()
        return {"steps": self._count, "balance": None if self._balance is None else self._balance.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from.

        Raises:
            WeightsError: the state belongs to other teachers, or is none.
        """
        balanced = isinstance(state, Mapping) and state.keys() == {"steps", "balance"}
        if not balanced or (state["balance"] is None) != (self._balance is None) or not _is_count(state["steps"]):
            raise WeightsError(
                f"the state of other teachers, {state}; expected that of {', '.join(self.teachers)}. Attach with the "
                "teachers that it was saved from."
            )
        if self._balance is not None:
            self._balance.load_state_dict(state["balance"])
        self._count = state["steps"]
        self._before = None
        self._steps.close()

    @property
    def _will_look(self) -> bool:
        return self._count % self._every == 0 if self._steps.begins else self.looks

    def _plan(self, images: Tensor) -> Callable[[], TeacherMaps] | None:
        grids = self._grids.get(images.shape[2:])
        return None if grids is None or not self._will_look else partial(self._run, images, grids)

    def _run(self, images: Tensor, grids: Sequence[Grid]) -> TeacherMaps:
        return {
            (name, grid): teacher(images, grid=grid, input_range=self._input_range).map
            for name, teacher in self.teachers.items()
            for grid in grids
        }

    def _scaled(self, maps: TeacherMaps) -> TeacherMaps:
        if self._balance is None:
            return maps
        return {(name, grid): self._balance.scaled(name, feature_map) for (name, grid), feature_map in maps.items()}


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0
