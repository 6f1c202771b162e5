"""Every run is done exactly once, whoever dies, joins or comes at the same time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from support import tiny_ablation
from support.tiny_ablation import ARMS, SEEDS, tiny_record, tiny_study

from detectors.ablation.record import AblationRecord, TrialRecord
from detectors.ablation.storage import PatientStorage, open_storage
from detectors.ablation.study import AblationStudy, RunInterrupted, Task
from vfmdistill.errors import InputError

ALL = sorted((arm.name, seed) for arm in ARMS for seed in SEEDS)


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'study.db'}"


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL server of this test alone, which ends with it."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    found = shutil.which("pg_ctl") or next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: there is no pg_ctl")
    programs = Path(found).resolve().parent
    folder = tmp_path_factory.mktemp("pg")
    as_user: dict[str, object] = {}
    if os.geteuid() == 0:  # which PostgreSQL refuses to be
        import pwd

        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        for path in (folder, *folder.parents):  # pytest makes them for root alone
            if path.stat().st_uid == 0 and path != Path("/") and not path.stat().st_mode & 0o001:
                path.chmod(path.stat().st_mode | 0o011)
        os.chown(folder, user.pw_uid, user.pw_gid)
        as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    data, log = folder / "data", folder / "log"

    def call(*words: object) -> None:
        with (folder / "said").open("w+") as said:  # a pipe would stay open in the server
            status = subprocess.run(
                [str(word) for word in words], cwd=folder, stdout=said, stderr=said, timeout=60, check=False, **as_user
            ).returncode  # type: ignore[call-overload]
            said.seek(0)
            if status:
                pytest.skip(f"PostgreSQL cannot be started here: {said.read()}")

    call(programs / "initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync")
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    call(programs / "pg_ctl", "-D", data, "-l", log, "-w", "-o", options, "start")
    try:
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        subprocess.run([str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop"], check=False, **as_user)  # type: ignore[call-overload]


def start(storage: str, folder: Path, **settings: object) -> subprocess.Popen[str]:
    words = json.dumps({"storage": storage, "folder": str(folder), **settings})
    tests = Path(tiny_ablation.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}
    return subprocess.Popen(
        [sys.executable, tiny_ablation.__file__, words], stdout=subprocess.PIPE, text=True, env=environment
    )


def killed_and_resumed_by_two(storage: str, folder: Path) -> AblationStudy:
    """Kill a worker within its third run, then let two go on at once."""
    first = start(storage, folder, hang_at=3)
    assert first.stdout is not None
    begun = [first.stdout.readline().strip() for _ in range(3)]
    first.kill()
    first.wait()
    done = {path.name.removeprefix("done_") for path in folder.glob("done_*")}
    assert set(begun[:2]) <= done
    assert begun[2] not in done
    others = [start(storage, folder, seconds=0.1) for _ in range(2)]
    took_part = [{line.split("_")[2] for line in (other.stdout or ())} for other in others]
    assert [other.wait(timeout=120) for other in others] == [0, 0]
    assert all(took_part), "one of the two did nothing"
    return tiny_study(storage, join=True)


def check_each_exactly_once(study: AblationStudy, folder: Path) -> None:
    done = Counter(tuple(path.name.split("_")[1:3]) for path in folder.glob("done_*"))
    assert set(done.values()) == {1}
    assert len(done) == len(ALL)
    record = study.record()
    assert sorted((found.arm, found.seed) for found in record.records) == ALL
    assert record.missing == []
    states = Counter(trial.state for trial in study._study.get_trials())
    assert states == {TrialState.COMPLETE: len(ALL), TrialState.FAIL: 1}  # the one that was killed, and no other
    trials = study.trials()
    for found in record.records:
        assert trials[found.arm, found.seed].value == found.figures["AP"]
        assert trials[found.arm, found.seed].params == {"arm": found.arm, "seed": found.seed}


def test_a_killed_study_resumed_by_two_workers_on_a_file(tmp_path: Path) -> None:
    check_each_exactly_once(killed_and_resumed_by_two(sqlite(tmp_path), tmp_path), tmp_path)


def test_a_killed_study_resumed_by_two_workers_on_a_server(tmp_path: Path, postgresql: str) -> None:
    check_each_exactly_once(killed_and_resumed_by_two(postgresql, tmp_path), tmp_path)


def test_many_workers_from_the_first_moment_on_a_file(tmp_path: Path) -> None:
    workers = [start(sqlite(tmp_path), tmp_path, seconds=0.0) for _ in range(4)]
    assert [worker.wait(timeout=120) for worker in workers] == [0] * 4
    done = Counter(tuple(path.name.split("_")[1:3]) for path in tmp_path.glob("begun_*"))
    assert len(done) == len(ALL)
    assert set(done.values()) == {1}


def test_seeds_come_one_after_the_other_each_with_every_arm(tmp_path: Path) -> None:
    study, order = tiny_study(sqlite(tmp_path), join=False), []

    def work(task: Task) -> TrialRecord:
        order.append((task.arm.name, task.seed))
        return tiny_record(task)

    while study.take(work) == "done":
        pass
    assert order == [(arm.name, seed) for seed in SEEDS for arm in ARMS]


def test_it_is_a_grid_that_optuna_knows_to_be_exhausted(tmp_path: Path) -> None:
    study = tiny_study(sqlite(tmp_path), join=False, seeds=(0, 5))
    sampler = study._study.sampler
    assert isinstance(sampler, optuna.samplers.GridSampler)
    for left in range(len(study.points), 0, -1):
        assert not sampler.is_exhausted(study._study), left
        assert study.take(tiny_record) == "done"
    assert sampler.is_exhausted(study._study)
    assert study.take(tiny_record) == "over"


def test_an_error_is_kept_as_the_reason_and_tried_again_when_asked(tmp_path: Path) -> None:
    study = tiny_study(sqlite(tmp_path), join=False, seeds=(0,))

    def work(task: Task) -> TrialRecord:
        if task.arm.name == "off":
            raise InputError("no such card")
        return tiny_record(task)

    assert [study.take(work) for _ in range(4)] == ["failed", "done", "done", "over"]
    (missing,) = study.record().missing
    assert (missing.arm, missing.seed, missing.reason) == ("off", 0, "InputError: no such card")
    again = tiny_study(sqlite(tmp_path), join=True, seeds=(0,))
    assert [again.take(tiny_record) for _ in range(2)] == ["done", "over"]
    assert again.record().missing == []


def test_an_interrupted_run_waits_again(tmp_path: Path) -> None:
    study = tiny_study(sqlite(tmp_path), join=False, seeds=(0,))
    stopped: list[str] = []

    def work(task: Task) -> TrialRecord:
        if not stopped:
            stopped.append(task.arm.name)
            raise RunInterrupted("stopped")
        return tiny_record(task)

    assert study.take(work) == "failed"
    assert study.record().missing[0].reason.startswith("stopped on")
    assert [study.take(work) for _ in range(4)] == ["done", "done", "done", "over"]
    assert study.record().missing == []


def test_it_is_gone_on_with_only_if_asked_to(tmp_path: Path) -> None:
    tiny_study(sqlite(tmp_path), join=False)
    with pytest.raises(InputError, match="holds a study 'tiny' already: go on with it by --resume"):
        tiny_study(sqlite(tmp_path), join=False)
    assert tiny_study(sqlite(tmp_path), join=True).seeds == list(SEEDS)


def test_seeds_can_be_added(tmp_path: Path) -> None:
    study = tiny_study(sqlite(tmp_path), join=False, seeds=(0,))
    while study.take(tiny_record) == "done":
        pass
    more = tiny_study(sqlite(tmp_path), join=True, seeds=(0, 1))
    taken: list[tuple[str, int]] = []

    def work(task: Task) -> TrialRecord:
        taken.append((task.arm.name, task.seed))
        return tiny_record(task)

    while more.take(work) == "done":
        pass
    assert taken == [(arm.name, 1) for arm in ARMS]
    assert len(more.record().records) == 2 * len(ARMS)


def test_seeds_that_others_add_are_worked_on_and_reported_by_all(tmp_path: Path) -> None:
    first = tiny_study(sqlite(tmp_path), join=False, seeds=(0,))
    while first.take(tiny_record) == "done":
        pass
    tiny_study(sqlite(tmp_path), join=True, seeds=(5,))
    assert first.seeds == [0, 5]
    assert len(first.record().missing) == len(ARMS)
    assert [first.take(tiny_record) for _ in range(4)] == ["done", "done", "done", "over"]
    assert first.record().missing == []


def test_the_command_is_the_one_with_all_seeds_and_notes_are_the_newest(tmp_path: Path) -> None:
    def joined(seeds: tuple[int, ...], command: str, notes: tuple[str, ...] = ()) -> AblationRecord:
        storage = open_storage(sqlite(tmp_path), heartbeat=3)
        return AblationStudy(storage, "s", ARMS, {}, seeds, join=True, command=command, notes=notes).record()

    assert joined((0, 1), "two", ("a",)).command == "two"
    assert joined((0,), "one").command == "two"
    more = joined((0, 1, 2), "three")
    assert (more.command, more.notes) == ("three", ["a"])
    assert joined((0, 1, 2), "again", ("b",)).notes == ["b"]


@pytest.mark.parametrize(
    ("arms", "recipe", "message"),
    [
        (ARMS[:2], {"model": "deim_n", "epochs": 2}, "arm shuffled:tiny.gam"),
        (ARMS, {"model": "deim_n", "epochs": 3}, "epochs is 3, was 2"),
        ([ARMS[0], ARMS[1].model_copy(update={"settings": {}}), ARMS[2]], {"model": "deim_n", "epochs": 2},
         "arm tiny.gam"),
    ],
)  # fmt: skip
def test_other_arms_or_settings_are_refused(tmp_path: Path, arms: list, recipe: dict, message: str) -> None:  # type: ignore[type-arg]
    tiny_study(sqlite(tmp_path), join=False)
    with pytest.raises(InputError, match=message):
        AblationStudy(open_storage(sqlite(tmp_path), heartbeat=1), "tiny", arms, recipe, SEEDS, join=True)


def test_a_run_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = threading.Semaphore(0)
    original = PatientStorage.record_heartbeat

    def counted(self: PatientStorage, trial_id: int) -> None:
        original(self, trial_id)
        beats.release()

    monkeypatch.setattr(PatientStorage, "record_heartbeat", counted)
    study = tiny_study(sqlite(tmp_path), join=False, heartbeat=1)

    def work(task: Task) -> TrialRecord:
        assert all(beats.acquire(timeout=60) for _ in range(3))
        assert study.record().missing[0].reason.startswith("running on")
        return tiny_record(task)

    assert study.take(work) == "done"


def test_a_sign_of_life_that_fails_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(sqlite(tmp_path), heartbeat=1)

    def fails(self: optuna.storages.RDBStorage, trial_id: int) -> None:
        raise optuna.exceptions.StorageInternalError("the server restarts")

    monkeypatch.setattr(optuna.storages.RDBStorage, "record_heartbeat", fails)
    with pytest.warns(UserWarning, match="trying again: the server restarts"):
        storage.record_heartbeat(1)


def test_a_run_that_was_taken_for_dead_is_given_up(tmp_path: Path) -> None:
    study = tiny_study(sqlite(tmp_path), join=False, seeds=(0,))
    taken: list[str] = []

    def work(task: Task) -> TrialRecord:
        if not taken:
            study._storage.set_trial_state_values(task.trial._trial_id, TrialState.FAIL)
        taken.append(task.arm.name)
        return tiny_record(task)

    assert [study.take(work) for _ in range(5)] == ["failed", "done", "done", "done", "over"]
    assert taken[0] == taken[-1] == "off"
    assert study.record().missing == []


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")
def test_who_dies_while_taking_a_run_leaves_it_to_others(tmp_path: Path) -> None:
    study = tiny_study(sqlite(tmp_path), join=False, seeds=(0,))
    study._study.ask()  # it is marked as running, and no sign of life follows
    assert [study.take(tiny_record) for _ in range(4)] == ["done", "done", "done", "over"]
    assert study.record().missing == []
