"""Teaching: the teachers of a distiller, when they look at a batch, and what they say of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vfmdistill.balance import FeatureBalance
from vfmdistill.errors import InputError, WeightsError
from vfmdistill.input_range import InputRange
from vfmdistill.overlap import Overlap, SideStream
from vfmdistill.teacher import Teacher

Grid: TypeAlias = tuple[int, int]
TeacherMaps: TypeAlias = Mapping[tuple[str, Grid], Tensor]


class Teaching:
    """Gives each teacher's map on each grid, on every k-th batch.

    Args:
        teachers: each teacher and its share of the semantic loss, by name.
        input_range: what the images hold, as in `Teacher.forward`.
        device: where the images lie.
        every: the teachers look at the first of so many batches.

    Raises:
        InputError: `every` is no whole number of 1 or more.
    """

    def __init__(
        self, teachers: Mapping[str, tuple[Teacher, float]], input_range: InputRange, device: torch.device, every: int
    ) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise InputError(f"every={every!r}; expected 1 (the teachers see every batch) or a larger whole number.")
        self.teachers = {name: teacher for name, (teacher, _) in teachers.items()}
        self.shares = {name: share for name, (_, share) in teachers.items()}
        self._balance = FeatureBalance(teachers, device) if len(teachers) > 1 else None
        self._input_range = input_range
        self._every = every
        self._batches = self._settled = 0
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
        looks = self._looks
        self._batches += 1
        return looks

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
        """Keep what was learned since the last time; where torch.distributed runs, every process must call it."""
        self._settled = self._batches
        if self._balance is not None:
            self._balance.settle()

    def discard(self) -> None:
        """Be again as when it was settled last: the batches since then are given up."""
        self._batches = self._settled
        if self._balance is not None:
            self._balance.forget()

    def maps_of(self, images: Tensor, grid: Grid) -> dict[str, Tensor]:
        """Return the maps that the loss would compare on one grid by teacher, and learn nothing."""
        scaled = self._scaled(self._run(images, (grid,)))
        return {name: scaled[name, grid] for name in self.teachers}

    def state_dict(self) -> dict[str, Any]:
        """Return the balance (None with one teacher) and the number of batches, JSON-able. Reads the device."""
        return {"batches": self._batches, "balance": None if self._balance is None else self._balance.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from.

        Raises:
            WeightsError: the state belongs to other teachers.
        """
        if state.keys() != {"batches", "balance"} or (state["balance"] is None) != (self._balance is None):
            raise WeightsError(
                f"the state of other teachers, {dict(state)}; expected that of {', '.join(self.teachers)}. Attach with "
                "the teachers that it was saved from."
            )
        if self._balance is not None:
            self._balance.load_state_dict(state["balance"])
        self._batches = self._settled = state["batches"]

    @property
    def _looks(self) -> bool:
        return self._batches % self._every == 0

    def _plan(self, images: Tensor) -> Callable[[], TeacherMaps] | None:
        grids = self._grids.get(images.shape[2:])
        return None if grids is None or not self._looks else partial(self._run, images, grids)

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
