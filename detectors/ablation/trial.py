"""One run of an ablation, in a process of its own: trained, or gone on with, and summed up as a record."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from statistics import median
from typing import Any

from filelock import FileLock, Timeout

from detectors.training import Interrupted, assemble
from detectors.training.monitor import METRICS
from detectors.training.recipe import OF_PLACE, Recipe
from detectors.training.report_files import RunFiles, class_figures, figure_of
from detectors.training.snapshot import FOLDER
from vfmdistill.errors import DistillError, InputError

from .record import EpochRecord, TrialRecord

RECIPE = "recipe.json"
LOG = "log.txt"
BUSY = 75  # exit status where another process works in the folder: come again (EX_TEMPFAIL)
_LOCK = "run.lock"
_PATIENCE = 30.0  # seconds in which whoever works in a folder may finish saving


class FolderBusy(DistillError):  # noqa: N818 - nothing is wrong
    """Another process works in a run's folder."""


def train(recipe: Recipe) -> None:
    """Train a run, or what is left of it; nothing is left of one that is finished.

    Args:
        recipe: `output` is the run's folder, which one process at a time may work in; `resume` is decided here.

    Raises:
        FolderBusy: another process works in the folder.
        InputError: the folder holds a run of another recipe.
        DistillError: whatever the training raises.
    """
    folder = recipe.output
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.{_LOCK}"))
    try:
        with lock.acquire(timeout=_PATIENCE):
            begun = (folder / METRICS).exists() or (folder / FOLDER).exists()
            if begun:
                run = RunFiles(folder)
                check_same_recipe(run, recipe)
                if run.facts.get("finished"):
                    return
            with assemble(recipe.model_copy(update={"resume": begun})) as trainer:
                trainer.fit()
    except Timeout:
        raise FolderBusy(f"another process works in {folder}; wait until it is done, or end it.") from None


def check_same_recipe(run: RunFiles, recipe: Recipe) -> None:
    """Raise an InputError if a run was begun with settings that would make it another one."""
    asked = recipe.model_dump(mode="json")
    different = [
        f"{name} is {value!r}, was {run.settings[name]!r}"
        for name, value in asked.items()
        if name in run.settings and name not in OF_PLACE and run.settings[name] != value
        and (name, value) != ("batch_size", "auto")  # the run has what was found
    ]  # fmt: skip
    if different:
        raise InputError(
            f"{run.folder} holds a run of another recipe: {'; '.join(different)}. Give this one another --output."
        )


def record_of(folder: Path, *, arm: str, seed: int, root: Path) -> TrialRecord:
    """Return the record of a finished run.

    Args:
        folder: of the run.
        arm: name of its arm.
        seed: of the run.
        root: folder of the ablation.

    Raises:
        InputError: the folder holds no finished run, or one whose last epoch was not evaluated.
    """
    run = RunFiles(folder)
    if not run.facts.get("finished") or figure_of(run.epochs[-1], "AP") is None:
        raise InputError(f"{folder} holds no finished and evaluated run; train it to its end first.")
    last, best = run.epochs[-1], run.best or run.epochs[-1]
    peak = run.peak_memory
    return TrialRecord(
        arm=arm,
        seed=seed,
        folder=str(folder.relative_to(root)),
        figures={name: value for name in last if name.startswith(("AP", "AR"))
                 and (value := figure_of(last, name)) is not None},  # the AP of classes is no number
        per_class=class_figures(last),
        best={"AP": best["AP"], "epoch": best["epoch"]},
        epochs=[_epoch(line) for line in run.epochs],
        step_seconds=_step_seconds(run),
        peak_memory=None if peak is None else {"bytes": peak[0], "of": peak[1]},
        seconds=run.seconds,
        teachers=run.facts.get("teachers", []),
        recipe=run.settings,
        command=_command(folder),
        environment=run.facts.get("environment", {}),
        host=socket.gethostname(),
    )  # fmt: skip


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a finished run, which keeps its trained detector."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _epoch(line: dict[str, Any]) -> EpochRecord:
    return EpochRecord(
        epoch=line["epoch"],
        **{name: figure_of(line, name) for name in EpochRecord.model_fields if name != "epoch"},
    )


def _step_seconds(run: RunFiles) -> float | None:
    """Return the median over the epochs of the seconds of a step; the first, which warms up, only if it is alone."""
    batch_size = run.settings.get("batch_size")
    speeds = [speed for _, speed in sorted(run.speeds.items())]
    if not speeds or not isinstance(batch_size, int):
        return None
    return batch_size / median(speeds[1:] or speeds)


def _command(folder: Path) -> str:
    return shlex.join(["python", "-m", __spec__.name if __spec__ else __name__, str(folder / RECIPE)])


def _end_with_parent() -> None:
    """Stop as for SIGTERM as soon as whoever started this process is gone: it holds the other end of standard input."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Train the run whose recipe is in a file; ``--end-with-parent`` ends it with the process that started it."""
    if "--end-with-parent" in arguments:
        arguments = [word for word in arguments if word != "--end-with-parent"]
        _end_with_parent()
    if len(arguments) != 1:
        print(f"usage: python -m detectors.ablation.trial FOLDER/{RECIPE}", file=sys.stderr)
        return 2
    try:
        train(Recipe.model_validate(json.loads(Path(arguments[0]).read_text(encoding="utf-8"))))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_status
    except FolderBusy as error:
        print(f"error: {error}", file=sys.stderr)
        return BUSY
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
