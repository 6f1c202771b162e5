"""The workers of one machine, and the bar over all of their runs."""

from __future__ import annotations

import os
import signal
import threading
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from rich.console import Console

from detectors.ablation import crew as room
from detectors.ablation.arms import Arm
from detectors.ablation.crew import run_crew
from detectors.ablation.progress import watch
from detectors.ablation.record import TrialRecord
from detectors.ablation.storage import open_storage
from detectors.ablation.study import AblationStudy, RunInterrupted, Task
from detectors.training.recipe import Recipe, recipe_for

ARMS = [Arm(name="off", kind="off", settings={}), Arm(name="gam", kind="method", settings={}, baseline="off")]


@pytest.fixture
def study(tmp_path: Path) -> AblationStudy:
    storage = open_storage(f"sqlite:///{tmp_path / 'study.db'}", heartbeat=30)
    return AblationStudy(storage, "test", ARMS, {}, [0, 1], join=False)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_for("deim_n", data=tmp_path, output=tmp_path, epochs=4, device="cpu")


def done(task: Task) -> TrialRecord:
    return TrialRecord(arm=task.arm.name, seed=task.seed, folder="", figures={"AP": 0.5})


class StubWorker:
    """Does runs without training; stands in for the one that starts processes."""

    do: Any = staticmethod(done)

    def __init__(
        self, study: AblationStudy, recipe: Recipe, root: Path, place: Any, stop: threading.Event, say: Any, **_: Any
    ) -> None:
        self.study, self.stop = study, stop

    def run(self) -> None:
        while not self.stop.is_set() and self.study.take(lambda task: type(self).do(task, self.stop)) != "over":
            pass


def crew_of(monkeypatch: pytest.MonkeyPatch, do: Any) -> None:
    monkeypatch.setattr(room, "Worker", type("Doing", (StubWorker,), {"do": staticmethod(do)}))


def test_workers_share_the_runs_until_none_is_left(
    study: AblationStudy, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crew_of(monkeypatch, lambda task, _: done(task))
    assert run_crew(study, recipe, tmp_path, workers=2, console=Console(quiet=True)) is None
    assert {(run.arm, run.seed) for run in study.record().records} == {("off", 0), ("gam", 0), ("off", 1), ("gam", 1)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_runs_end_in_order_and_is_told(
    number: signal.Signals, study: AblationStudy, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(task: Task, stop: threading.Event) -> TrialRecord:
        os.kill(os.getpid(), number)
        assert stop.wait(30)
        raise RunInterrupted

    crew_of(monkeypatch, interrupted)
    before = signal.getsignal(number)
    assert run_crew(study, recipe, tmp_path, workers=1, console=Console(quiet=True)) == number
    assert signal.getsignal(number) is before
    assert not study.record().records
    assert {trial.state for trial in study.trials().values()} <= {TrialState.WAITING, TrialState.FAIL}


def test_a_worker_that_breaks_stops_the_others_and_is_raised(
    study: AblationStudy, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(StubWorker):
        def run(self) -> None:
            raise OSError("the storage is gone")

    monkeypatch.setattr(room, "Worker", Broken)
    with pytest.raises(OSError, match="the storage is gone"):
        run_crew(study, recipe, tmp_path, workers=2, console=Console(quiet=True))


def test_progress_counts_epochs_over_all_runs(study: AblationStudy) -> None:
    shown = StringIO()
    console = Console(file=shown, force_terminal=True, width=100)
    over, seen = threading.Event(), threading.Event()

    def half(task: Task) -> TrialRecord:
        task.trial.set_user_attr("epochs", 2)
        watcher = threading.Thread(
            target=watch, args=(study, {"off": 4, "gam": 6}, console, over), kwargs={"poll": 0.05}
        )
        watcher.start()
        for _ in range(200):
            if "seed 0" in shown.getvalue():
                seen.set()
                break
            threading.Event().wait(0.05)
        over.set()
        watcher.join()
        return done(task)

    assert study.take(half) == "done"
    assert seen.is_set()
    assert "0 of 4 runs" in shown.getvalue()
    assert "2/20" in shown.getvalue()
    assert "off, seed 0" in shown.getvalue()


def test_nothing_is_drawn_where_there_is_no_terminal(study: AblationStudy) -> None:
    shown, over = StringIO(), threading.Event()
    over.set()
    watch(study, {"off": 4, "gam": 6}, Console(file=shown), over)
    assert shown.getvalue().strip() == ""
