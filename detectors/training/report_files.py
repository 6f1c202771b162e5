"""What a run's folder says about the run, finished or not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError

from vfmdistill.errors import InputError

from .monitor import METRICS, TIMING
from .recipe import Recipe
from .records import read_lines
from .run_file import NAME, read_run


class RunFiles:
    """A run as its files describe it.

    Attributes:
        folder: of the run.
        facts: what run.json holds.
        epochs: the lines of metrics.jsonl, in order.
        timing: the lines of timing.jsonl; an epoch that was worked on twice has two.

    Raises:
        InputError: the folder holds no run, or a file of it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / METRICS).exists() and not (folder / NAME).exists():
            raise InputError(
                f"{folder} holds no run: there is neither {NAME} nor {METRICS} in it. Give the folder that a training "
                "wrote into (--output)"
            )
        self.folder = folder
        self.facts = read_run(folder)
        by_epoch = {line["epoch"]: line for line in read_lines(folder / METRICS)}
        self.epochs = [by_epoch[epoch] for epoch in sorted(by_epoch)]
        self.timing = read_lines(folder / TIMING)

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe, where it is one of this version."""
        try:
            return Recipe.model_validate(self.facts.get("recipe"))
        except ValidationError:
            return None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the recipe, of whichever version."""
        return self.facts.get("recipe") or {}

    @property
    def done(self) -> int:
        """How many epochs are done."""
        return self.epochs[-1]["epoch"] + 1 if self.epochs else 0

    @property
    def planned(self) -> int:
        """How many epochs the run shall have."""
        planned = self.settings.get("epochs")
        return planned if isinstance(planned, int) else self.done

    @property
    def finished(self) -> bool:
        """Whether the run did what it was to do."""
        return bool(self.facts.get("finished", self.done >= self.planned)) and self.done > 0

    @property
    def best(self) -> dict[str, Any] | None:
        """The first of the epochs with the highest AP; None before any was measured."""
        evaluated = [line for line in self.epochs if figure_of(line, "AP") is not None]
        return max(evaluated, key=lambda line: line["AP"], default=None)

    def series(self, name: str) -> dict[int, float]:
        """Return the values of a figure by epoch, where there are any."""
        return _series(self.epochs, name)

    @cached_property
    def speeds(self) -> dict[int, float]:
        """Images per second by epoch, of the last time each was worked on."""
        return _series(self.timing, "images_per_second")

    @cached_property
    def epoch_seconds(self) -> dict[int, float]:
        """Seconds that were spent on each epoch, as often as it was worked on."""
        spent: dict[int, float] = {}
        for line in self.timing:
            spent[line["epoch"]] = spent.get(line["epoch"], 0.0) + (figure_of(line, "seconds") or 0.0)
        return spent

    @property
    def usual_seconds(self) -> float | None:
        """Median of the seconds of an epoch that is done; None before there is one."""
        known = [self.epoch_seconds[line["epoch"]] for line in self.epochs if line["epoch"] in self.epoch_seconds]
        return median(known) if known else None

    @property
    def seconds(self) -> float | None:
        """Seconds of all epochs, those that were repeated or interrupted included."""
        return sum(self.epoch_seconds.values()) if self.timing else figure_of(self.facts, "seconds")

    @property
    def images_per_second(self) -> float | None:
        """Mean speed of training."""
        parts = [(figure_of(line, "images_per_second"), figure_of(line, "training_seconds")) for line in self.timing]
        known = [(speed, seconds) for speed, seconds in parts if speed is not None and seconds]
        if not known:
            return figure_of(self.facts, "images_per_second")
        return sum(speed * seconds for speed, seconds in known) / sum(seconds for _, seconds in known)

    @property
    def peak_memory(self) -> tuple[float, str] | None:
        """Bytes, and what memory that was."""
        found = [line.get("peak_memory") for line in [*self.timing, self.facts]]
        peaks = [(size, str(peak.get("of", ""))) for peak in found if isinstance(peak, Mapping)
                 and (size := figure_of(peak, "bytes"))]  # fmt: skip
        peaks += [(float(peak), "") for peak in found if isinstance(peak, (int, float))]
        return max(peaks, default=None)

    @property
    def bad_steps(self) -> dict[int, int]:
        """Number of steps that were left out, by epoch; epochs without any are not in it."""
        found, before = {}, 0
        for epoch, so_far in self.series("bad_steps").items():
            if so_far > before:
                found[epoch] = int(so_far) - before
            before = int(so_far)
        return found


def figure_of(values: Mapping[str, Any], name: str) -> float | None:
    """Return a number, or None where there is none; −1 in COCO's figures means that there was nothing to measure."""
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return None if value < 0 and name.startswith(("AP", "AR")) else value


def class_figures(line: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the AP of each class in an evaluated epoch, None for a class without objects."""
    found = line.get("AP_per_class")
    if not isinstance(found, Mapping):
        return {}
    return {str(name): figure_of({"AP": value}, "AP") for name, value in found.items()}


def _series(lines: list[dict[str, Any]], name: str) -> dict[int, float]:
    return {line["epoch"]: value for line in lines if (value := figure_of(line, name)) is not None}
