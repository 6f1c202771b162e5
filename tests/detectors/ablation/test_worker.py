"""Workers train runs in processes of their own: done, failed, stopped and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.tiny_run import tiny_recipe

from detectors.ablation import trial
from detectors.ablation.arms import Arm
from detectors.ablation.crew import run_crew
from detectors.ablation.estimate import estimate_arms
from detectors.ablation.grid import folder_of
from detectors.ablation.record import AblationRecord
from detectors.ablation.storage import open_storage
from detectors.ablation.study import AblationStudy, Task
from detectors.ablation.worker import Place, Worker, places
from detectors.data.toy import write_toy_dataset
from detectors.training.recipe import Recipe
from vfmdistill.errors import InputError

OFF = Arm(name="off", kind="off", settings={"teacher": None})
BROKEN = Arm(
    name="broken", kind="method", baseline="off",
    settings={"teacher": "efficientnet_lite0", "teacher_weights": "no/such/file.pth"},
)  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    data = write_toy_dataset(tmp_path_factory.mktemp("toy") / "data", train_images=13, val_images=5, image_size=64)
    return tiny_recipe(data, "unused", teacher=None, epochs=3)


def study_in(folder: Path, recipe: Recipe, *arms: Arm) -> AblationStudy:
    storage = open_storage(f"sqlite:///{folder / 'study.db'}", heartbeat=30)
    return AblationStudy(storage, "test", arms, recipe.model_dump(mode="json"), [1], join=True)


class Said(list[str]):
    """What a worker said; sets an event as soon as a run begins."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def __call__(self, text: str) -> None:
        self.append(text)
        self.begun.set()


@pytest.fixture(scope="module")
def done(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AblationStudy, list[str]]:
    """A study with an arm that can be trained and one that cannot, all worked off."""
    folder, said = tmp_path_factory.mktemp("done"), Said()
    study = study_in(folder, recipe, OFF, BROKEN)
    Worker(study, recipe, folder, Place(threads=1), threading.Event(), said, poll=0.2).run()
    return folder, study, said


def only(record: AblationRecord) -> Any:
    (found,) = record.records
    return found


def test_a_run_is_trained_in_its_folder(done: tuple[Path, AblationStudy, list[str]]) -> None:
    folder, study, said = done
    record = only(study.record())
    assert (record.arm, record.seed, record.folder) == ("off", 1, "off/seed_1")
    assert [epoch.epoch for epoch in record.epochs] == [0, 1, 2]
    assert (folder / "off/seed_1/pretrained").is_dir()
    assert not (folder / "off/seed_1/checkpoints").exists()
    assert record.environment["hardware"]["threads"] == 1
    assert any(text == f"off, seed 1: AP {record.figures['AP']:.3f}" for text in said)
    found = study.trials()["off", 1]
    assert set(found.intermediate_values) == {0, 1, 2}
    assert found.user_attrs["epochs"] == 3


def test_a_run_that_cannot_be_trained_says_why(done: tuple[Path, AblationStudy, list[str]]) -> None:
    folder, study, said = done
    (missing,) = study.record().missing
    assert (missing.arm, missing.seed) == ("broken", 1)
    assert "status 1: error: " in missing.reason
    assert "no/such/file.pth" in missing.reason
    assert any("broken, seed 1: failed with status 1" in text for text in said)
    assert "no/such/file.pth" in (folder / folder_of("broken", 1) / trial.LOG).read_text()


def test_a_worker_that_is_told_to_stop_saves_and_another_goes_on(
    recipe: Recipe, tmp_path: Path, done: tuple[Path, AblationStudy, list[str]]
) -> None:
    study, stop, said = study_in(tmp_path, recipe, OFF), threading.Event(), Said()
    worker = threading.Thread(
        target=Worker(study, recipe, tmp_path, Place(threads=1), stop, said, poll=0.05).run, daemon=True
    )
    worker.start()
    while not study.trials()["off", 1].intermediate_values:  # the first epoch is done
        assert worker.is_alive(), said
        worker.join(0.05)
    stop.set()
    worker.join(120)
    assert not worker.is_alive()
    stopped = study.record()
    if stopped.missing:  # the machine may have been faster than we
        assert "off, seed 1: stopped, its state is saved" in said
        assert stopped.missing[0].reason.startswith("stopped on")
    assert run_crew(study, recipe, tmp_path, workers=1, console=Console(quiet=True)) is None
    resumed, whole = only(study.record()), only(done[1].record())
    assert resumed.figures == whole.figures
    assert [epoch.loss for epoch in resumed.epochs] == [epoch.loss for epoch in whole.epochs]


def test_a_run_that_somebody_works_on_waits(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, stop, said = study_in(tmp_path, recipe, OFF), threading.Event(), Said()
    statuses = [trial.BUSY, trial.BUSY, 1]

    def train(self: Worker, task: Task, folder: Path) -> int:
        (folder / trial.LOG).touch()
        return statuses.pop(0)

    monkeypatch.setattr(Worker, "_train", train)
    Worker(study, recipe, tmp_path, Place(threads=1), stop, said, poll=0.01).run()
    assert statuses == []
    assert said.count("off, seed 1: another process works on it") == 2
    assert study.record().missing[0].reason.startswith("RunFailed: status 1")


def test_the_reason_of_a_failure_is_that_of_the_last_attempt(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Worker, task: Task, folder: Path) -> int:
        with (folder / trial.LOG).open("a") as log:
            log.write("epoch 3\nKilled\n")
        return 137

    study, folder = study_in(tmp_path, recipe, OFF), tmp_path / "off" / "seed_1"
    folder.mkdir(parents=True)
    (folder / trial.LOG).write_text("error: what went wrong the time before\n")
    monkeypatch.setattr(Worker, "_train", killed)
    Worker(study, recipe, tmp_path, Place(threads=1), threading.Event(), Said()).run()
    assert study.record().missing[0].reason == "RunFailed: status 137: epoch 3 / Killed"


def test_a_run_ends_with_whoever_started_it(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / trial.RECIPE
    file.write_text(recipe.model_copy(update={"output": tmp_path / "run", "epochs": 500}).model_dump_json())
    words = [sys.executable, "-m", "detectors.ablation.trial", str(file), "--end-with-parent"]
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": root, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    assert any(line.startswith("epoch 0") for line in process.stdout)
    process.stdin.close()  # as when the parent dies
    process.stdout.read()
    assert process.wait(timeout=120) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in process.stderr.read()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["finished"] is False


def test_the_machine_is_shared_out(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert places(3, recipe) == [Place(2)] * 3
    assert places(16, recipe) == [Place(1)] * 16
    on_gpus = recipe.model_copy(update={"device": "auto"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [place.gpu for place in places(3, on_gpus)] == ["3", "5", "3"]
    assert [place.gpu for place in places(1, on_gpus)] == [None]  # one run may have them all
    assert [place.gpu for place in places(2, recipe)] == [None, None]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert places(2, recipe)[0].threads == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    with pytest.raises(InputError, match="OMP_NUM_THREADS is '4,2'; expected one number"):
        places(2, recipe)


def test_an_estimate_follows_from_steps_and_evaluations(recipe: Recipe, tmp_path: Path) -> None:
    longer = recipe.model_copy(update={"epochs": 10, "evaluate_every": 4, "output": tmp_path / "never"})
    ((arm, estimate),) = estimate_arms(longer, [OFF], steps=1)
    assert arm is OFF
    # 13 images in batches of 4 are 3 steps; epochs 3, 7 and 9 are evaluated
    assert estimate.seconds == pytest.approx(30 * estimate.step_seconds + 3 * estimate.evaluation_seconds)
    assert estimate.step_seconds > 0
    assert estimate.evaluation_seconds > 0
    assert not (tmp_path / "never").exists()
