"""A worker of an ablation whose runs are moments long: tiny_ablation.py '{"storage": …, "folder": …, …}'

Every run that is begun and every one that is done leaves a file in the folder; its name is printed when it begins.
"seconds": of a run. "hang_at": number of the run, from 1, that never ends, so that whoever started it can kill it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path

from detectors.ablation.arms import Arm
from detectors.ablation.record import TrialRecord
from detectors.ablation.storage import open_storage
from detectors.ablation.study import AblationStudy, Task

ARMS = [
    Arm(name="off", kind="off", settings={"teacher": None}),
    Arm(name="tiny+gam", kind="method", settings={"teacher": "tiny"}, baseline="off"),
    Arm(name="shuffled:tiny+gam", kind="control", settings={"teacher": "tiny", "teacher_control": "shuffled"},
        baseline="off", control_of="tiny+gam"),
]  # fmt: skip
SEEDS = (0, 1, 2, 3)


def tiny_study(
    storage: str, *, join: bool, seeds: tuple[int, ...] = SEEDS, heartbeat: int = 3, name: str = "tiny"
) -> AblationStudy:
    """Return the study of those arms."""
    return AblationStudy(
        open_storage(storage, heartbeat=heartbeat), name, ARMS, {"model": "deim_n", "epochs": 2}, seeds, join=join
    )


def tiny_record(task: Task) -> TrialRecord:
    """Return a record whose AP follows from arm and seed."""
    ap = 0.1 * (1 + [arm.name for arm in ARMS].index(task.arm.name)) + 0.01 * task.seed
    return TrialRecord(arm=task.arm.name, seed=task.seed, folder=f"{task.arm.name}/{task.seed}", figures={"AP": ap})


def main(settings: dict[str, object]) -> None:
    """Work on the study until it is over, as a worker does."""
    folder = Path(str(settings["folder"]))
    study = tiny_study(str(settings["storage"]), join=True)
    begun: list[str] = []

    def work(task: Task) -> TrialRecord:
        name = f"{ARMS.index(task.arm)}_{task.seed}_{os.getpid()}_{uuid.uuid4().hex}"
        (folder / f"begun_{name}").touch()
        print(name, flush=True)
        begun.append(name)
        time.sleep(3600.0 if len(begun) == settings.get("hang_at") else float(str(settings.get("seconds", 0.2))))
        (folder / f"done_{name}").touch()
        return tiny_record(task)

    while (outcome := study.take(work)) != "over":
        if outcome == "busy":
            time.sleep(0.2)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
