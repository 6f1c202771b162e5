"""Worker: takes runs from a study one after the other, each trained in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from detectors.training.monitor import METRICS
from detectors.training.recipe import Recipe
from detectors.training.records import read_lines, replace_text
from detectors.training.report_files import figure_of
from vfmdistill.errors import InputError

from . import trial
from .grid import check_arm, folder_of
from .record import TrialRecord
from .study import AblationStudy, RunFailed, RunInterrupted, Task

_LAST_LINES = 5  # of a run's log, in the message about its failure


class Place(NamedTuple):
    """What a worker has of its machine.

    Attributes:
        threads: of each run, for torch.
        gpu: number or name of the only GPU that its runs see; None leaves them what this process sees.
    """

    threads: int
    gpu: str | None = None


def places(workers: int, recipe: Recipe) -> list[Place]:
    """Share the machine out to workers: its cores in equal parts, its GPUs in turn.

    Raises:
        InputError: OMP_NUM_THREADS is no number.
    """
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = os.environ.get("OMP_NUM_THREADS")
    if given and not given.isdecimal():
        raise InputError(f"OMP_NUM_THREADS is {given!r}; expected one number of threads for every run, or none.")
    threads = int(given or max(1, cores // workers))
    gpus: list[str] = []
    if recipe.device != "cpu" and workers > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        gpus = seen.split(",") if seen else [str(index) for index in range(torch.cuda.device_count())]
    return [Place(threads, gpus[index % len(gpus)] if len(gpus) > 1 else None) for index in range(workers)]


class Worker:
    """Does runs until there is none left, or until it is told to stop.

    Args:
        study: whose runs.
        recipe: that all arms share.
        root: folder of the ablation, which holds a folder of each run.
        place: what it has of the machine.
        stop: set it to end the run that is being worked on, saved, and take no other.
        say: is told what begins, ends and fails.
        keep_checkpoints: whether finished runs keep theirs, besides the trained detector.
        poll: seconds between two looks at a run.
    """

    def __init__(
        self,
        study: AblationStudy,
        recipe: Recipe,
        root: Path,
        place: Place,
        stop: threading.Event,
        say: Callable[[str], None],
        *,
        keep_checkpoints: bool = False,
        poll: float = 2.0,
    ) -> None:
        self._study, self._recipe, self._root, self._place = study, recipe, root, place
        self._stop, self._say = stop, say
        self._keep_checkpoints, self._poll = keep_checkpoints, poll

    def run(self) -> None:
        """Take runs until all are done: while others work, one of theirs may come back."""
        while not self._stop.is_set():
            outcome = self._study.take(self._work)
            if outcome == "over":
                return
            if outcome == "busy":
                self._stop.wait(self._poll)

    def _work(self, task: Task) -> TrialRecord:
        name = f"{task.arm.name}, seed {task.seed}"
        folder = self._root / folder_of(task.arm.name, task.seed)
        recipe = check_arm(self._recipe, task.arm, seed=task.seed, output=folder)
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / trial.RECIPE, recipe.model_dump_json(indent=1) + "\n")
        task.trial.set_user_attr("host", socket.gethostname())
        going_on = (folder / METRICS).exists()
        self._say(f"{name}: {'going on' if going_on else 'begins'} in {folder}")
        log = folder / trial.LOG
        begins = log.stat().st_size if log.exists() else 0  # an earlier attempt wrote the rest
        try:
            status = self._train(task, folder)
        except BaseException as error:
            self._say(f"{name}: {error}")
            raise
        if self._stop.is_set() and status != 0:
            self._say(f"{name}: stopped, its state is saved")
            raise RunInterrupted(name)
        if status == trial.BUSY:
            # Whoever was taken for dead lives: the run waits until it is done.
            self._say(f"{name}: another process works on it")
            raise RunInterrupted(name)
        if status != 0:
            reason = _end_of(log, begins)
            self._say(f"{name}: failed with status {status}: {reason}")
            raise RunFailed(f"status {status}: {reason}")
        record = trial.record_of(folder, arm=task.arm.name, seed=task.seed, root=self._root)
        if not self._keep_checkpoints:
            trial.drop_checkpoints(folder)
        self._say(f"{name}: AP {record.figures['AP']:.3f}")
        return record

    def _train(self, task: Task, folder: Path) -> int:
        """Train in a process that ends with this one, and tell the study how far it is; return its exit status."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._place.threads), "PYTHONUNBUFFERED": "1"}
        if self._place.gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._place.gpu
        words = [sys.executable, "-m", trial.__name__, str(folder / trial.RECIPE), "--end-with-parent"]
        with (folder / trial.LOG).open("ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,  # Ctrl-C in the terminal is for us, who pass it on
            )  # fmt: skip
            told, asked = 0, False
            try:
                while True:
                    try:
                        process.wait(self._poll)
                    except subprocess.TimeoutExpired:
                        told = _tell(task, folder, told)
                        if self._stop.is_set() and not asked:  # a second time would end it without saving
                            process.terminate()
                            asked = True
                        continue
                    _tell(task, folder, told)
                    return process.returncode
            finally:
                if process.poll() is None:  # this worker fails
                    process.kill()
                    process.wait()
                if process.stdin is not None:
                    process.stdin.close()


def _tell(task: Task, folder: Path, told: int) -> int:
    """Report the epochs that are new since `told` were done; return how many are done now."""
    lines = read_lines(folder / METRICS)
    for line in lines[told:]:
        ap = figure_of(line, "AP")
        if ap is not None:
            task.trial.report(ap, line["epoch"])
    if len(lines) > told:
        task.trial.set_user_attr("epochs", len(lines))
    return len(lines)


def _end_of(log: Path, begins: int) -> str:
    text = log.read_bytes()[begins:].decode("utf-8", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), " / ".join(lines[-_LAST_LINES:]))
