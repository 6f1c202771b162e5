"""Finished runs to probe, by arm: given one by one, or as the folder of an ablation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import detectors
from detectors.detector_config import CONFIG
from detectors.input_size import check_input_size
from detectors.training.recipe import Recipe
from detectors.training.report_files import RunFiles
from detectors.training.run_file import NAME
from detectors.training.snapshot import PRETRAINED
from vfmdistill.errors import InputError

from .grid import folder_of
from .report import LINES, read_record


@dataclass(frozen=True)
class ProbedRun:
    """A finished run of an arm; `folder` is what `--output` of its training was."""

    arm: str
    folder: Path

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The settings of its recipe, of whichever version."""
        return RunFiles(self.folder).settings

    @property
    def seed(self) -> int:
        """What the run is paired by."""
        return int(self._setting("seed"))

    @property
    def data(self) -> Path:
        """Folder of the data set that it was trained on."""
        return Path(self._setting("data"))

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images that it was trained on."""
        return check_input_size(self._setting("input_size"))

    @property
    def recipe(self) -> Recipe:
        """The recipe.

        Raises:
            InputError: it is of another version.
        """
        try:
            return Recipe.model_validate(self.settings)
        except ValidationError:
            raise InputError(f"the recipe of {self.folder} is of another version; name the teacher yourself.") from None

    def open(self) -> detectors.Detector:
        """Return the trained detector, in eval mode, on the CPU."""
        return detectors.from_pretrained(self.folder / PRETRAINED)

    def _setting(self, name: str) -> Any:
        value = self.settings.get(name)
        if value is None:
            raise InputError(f"{self.folder / NAME} does not say the {name} of its run; expected it in its recipe.")
        return value


def runs_of(arm: str, folder: Path) -> list[ProbedRun]:
    """Return the runs that a folder stands for: itself, or all in it that are called seed_N.

    Raises:
        InputError: there is none, or one is not finished; all of these are named.
    """
    if (folder / NAME).is_file():
        found = [folder]
    else:
        found = sorted(
            (path for path in folder.glob("seed_*") if path.is_dir()), key=lambda path: (len(path.name), path)
        )
    if not found:
        raise InputError(f"{folder} holds neither a run ({NAME}) nor runs in folders seed_N; name another folder.")
    unfinished = [str(path) for path in found if not (path / PRETRAINED / CONFIG).is_file()]
    if unfinished:
        raise InputError(
            f"{', '.join(unfinished)}: no trained detector in {PRETRAINED}; train to the end first, or name the runs "
            "that are done."
        )
    return [ProbedRun(arm, path) for path in found]


def runs_of_ablation(folder: Path) -> list[ProbedRun]:
    """Return the runs of an ablation, FOLDER/ARM/seed_N; arms without a teacher come first.

    Arms have the names of its records, where it has been reported, else those of their folders.

    Raises:
        InputError: there is none, one is not finished, or there are several arms without a teacher.
    """
    arms = sorted({path.parent for path in folder.glob("*/seed_*") if path.is_dir()})
    if not arms:
        raise InputError(f"{folder} holds no runs in folders ARM/seed_N; expected the output folder of an ablation.")
    known = read_record(folder / LINES).arms if (folder / LINES).is_file() else []
    names = {folder_of(arm.name, 0).parent.name: arm.name for arm in known}
    by_arm = [runs_of(names.get(path.name, path.name), path) for path in arms]
    by_arm.sort(key=lambda runs: runs[0].settings.get("teacher") is not None)
    plain = [runs[0].arm for runs in by_arm if runs[0].settings.get("teacher") is None]
    if len(plain) > 1:
        raise InputError(
            f"{folder} has several arms without a teacher: {', '.join(plain)}. Name what is compared by --arm "
            "NAME=FOLDER, the one that others are compared with first."
        )
    return [run for runs in by_arm for run in runs]


def common(runs: Sequence[ProbedRun], what: str) -> Any:
    """Return what all runs agree on, their `data` or `input_size`.

    Raises:
        InputError: they do not agree.
    """
    values = list(dict.fromkeys(getattr(run, what) for run in runs))
    if len(values) > 1:
        option = what.replace("_", "-")
        raise InputError(
            f"the runs differ in {what}: {', '.join(map(str, values))}; expected one for all. Say which by --{option}."
        )
    return values[0]


def check_seeds(runs: Iterable[ProbedRun]) -> None:
    """Raise an InputError if an arm has a seed twice: runs are paired by it."""
    seen: dict[tuple[str, int], Path] = {}
    for run in runs:
        twin = seen.get((run.arm, run.seed))
        if twin is not None:
            raise InputError(
                f"arm {run.arm} has seed {run.seed} twice: {twin} and {run.folder}; expected one run a seed."
            )
        seen[run.arm, run.seed] = run.folder
