"""Progress over all runs of an ablation, whoever works on them."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from optuna.trial import TrialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .study import AblationStudy, Point


def watch(
    study: AblationStudy, epochs: Mapping[str, int], console: Console, over: threading.Event, *, poll: float = 2.0
) -> None:
    """Show how far the study is until `over` is set: epochs of all runs, and of each that is being worked on.

    Where there is no terminal, nothing is shown; what begins and ends is said by the workers.

    Args:
        study: what is watched.
        epochs: of a run of each arm.
        console: to show it on.
        over: ends it.
        poll: seconds between two looks.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        whole = progress.add_task("", total=sum(epochs[arm] for arm, _ in study.points))
        shown: dict[Point, TaskID] = {}
        while True:
            _update(study, epochs, progress, whole, shown)
            if over.wait(poll):
                return


def _update(
    study: AblationStudy, epochs: Mapping[str, int], progress: Progress, whole: TaskID, shown: dict[Point, TaskID]
) -> None:
    trials = study.trials()
    done, epochs_done = 0, 0
    for point in study.points:
        trial = trials.get(point)
        finished = trial is not None and trial.state == TrialState.COMPLETE
        epoch = epochs[point[0]] if finished else int(trial.user_attrs.get("epochs", 0)) if trial is not None else 0
        done, epochs_done = done + finished, epochs_done + epoch
        running = trial is not None and trial.state == TrialState.RUNNING
        if running and point not in shown:
            shown[point] = progress.add_task(f"{point[0]}, seed {point[1]}", total=epochs[point[0]])
        if running:
            progress.update(shown[point], completed=epoch)
        elif point in shown:
            progress.remove_task(shown.pop(point))
    progress.update(whole, completed=epochs_done, description=f"{done} of {len(study.points)} runs")
