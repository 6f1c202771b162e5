from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detectors.ablation.arms import Arm
from detectors.ablation.comparison import compare
from detectors.ablation.probe_runs import ProbedRun, check_seeds, common, runs_of, runs_of_ablation
from detectors.ablation.record import AblationRecord
from detectors.ablation.report import write_report
from detectors.training.run_file import begin_run
from vfmdistill.errors import InputError


def write_run(folder: Path, *, finished: bool = True, **settings: Any) -> Path:
    recipe = {"data": "cards", "seed": 0, "input_size": [64, 96], "teacher": None, **settings}
    begin_run(folder, {"recipe": recipe})
    if finished:
        (folder / "pretrained").mkdir()
        (folder / "pretrained" / "config.json").write_text("{}")
    return folder


def test_a_folder_is_a_run_or_holds_runs(tmp_path: Path) -> None:
    for seed in (10, 9, 2):
        write_run(tmp_path / "gam" / f"seed_{seed}", seed=seed)
    (tmp_path / "gam" / "seed_2.run.lock").touch()
    (tmp_path / "gam" / "notes").mkdir()
    found = runs_of("mine", tmp_path / "gam")
    assert [(run.arm, run.seed, run.folder.name) for run in found] == [
        ("mine", 2, "seed_2"), ("mine", 9, "seed_9"), ("mine", 10, "seed_10"),
    ]  # fmt: skip
    (run,) = runs_of("mine", tmp_path / "gam" / "seed_9")
    assert (run.seed, run.data, run.input_size) == (9, Path("cards"), (64, 96))


def test_an_ablation_begins_with_the_arms_without_a_teacher(tmp_path: Path) -> None:
    for arm, teacher in (("a+gam", "tiny"), ("off", None), ("b+gam", "tiny")):
        for seed in range(2):
            write_run(tmp_path / arm / f"seed_{seed}", seed=seed, teacher=teacher)
    (tmp_path / "report.html").touch()
    (tmp_path / "cache").mkdir()
    found = runs_of_ablation(tmp_path)
    assert [(run.arm, run.seed) for run in found] == [
        (arm, seed) for arm in ("off", "a+gam", "b+gam") for seed in range(2)
    ]


def test_runs_that_are_not_finished_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "off" / "seed_0")
    write_run(tmp_path / "off" / "seed_1", finished=False)
    (tmp_path / "off" / "seed_2").mkdir()
    with pytest.raises(InputError, match=r"seed_1, .*seed_2: no trained detector in pretrained") as error:
        runs_of_ablation(tmp_path)
    assert "seed_0" not in str(error.value)
    with pytest.raises(InputError, match="seed_1: no trained detector"):
        runs_of("off", tmp_path / "off" / "seed_1")


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither a run \(run.json\) nor runs in folders seed_N"):
        runs_of("off", tmp_path)
    with pytest.raises(InputError, match="no runs in folders ARM/seed_N"):
        runs_of_ablation(tmp_path / "nowhere")


def test_runs_must_agree_on_what_they_are_probed_with(tmp_path: Path) -> None:
    runs = [ProbedRun("off", write_run(tmp_path / "a")), ProbedRun("gam", write_run(tmp_path / "b", teacher="tiny"))]
    assert common(runs, "data") == Path("cards")
    assert common(runs, "input_size") == (64, 96)
    runs.append(ProbedRun("gam", write_run(tmp_path / "c", input_size=[64, 64], data="fruit")))
    with pytest.raises(InputError, match=r"differ in input_size: \(64, 96\), \(64, 64\); .* --input-size"):
        common(runs, "input_size")
    with pytest.raises(InputError, match=r"differ in data: cards, fruit; .* --data"):
        common(runs, "data")


def test_an_arm_has_every_seed_once(tmp_path: Path) -> None:
    runs = [ProbedRun(arm, write_run(tmp_path / f"{arm}{seed}", seed=seed)) for arm in "ab" for seed in range(2)]
    check_seeds(runs)
    with pytest.raises(InputError, match=r"arm b has seed 1 twice: .*b1 and .*again"):
        check_seeds([*runs, ProbedRun("b", write_run(tmp_path / "again", seed=1))])
    with pytest.raises(InputError, match=r"arm b has seed 1 twice: .*b1 and .*b1;"):
        check_seeds([*runs, runs[-1]])


def test_an_ablation_with_several_baselines_has_to_be_taken_apart(tmp_path: Path) -> None:
    for arm in ("off,learning_rate=0.1", "off,learning_rate=0.2"):
        write_run(tmp_path / arm / "seed_0", teacher=None)
    with pytest.raises(InputError, match=r"without a teacher: off,.*=0.1, off,.*=0.2. .* --arm NAME=FOLDER"):
        runs_of_ablation(tmp_path)


def test_what_a_run_does_not_say_is_an_error(tmp_path: Path) -> None:
    run = ProbedRun("off", write_run(tmp_path / "run", seed=None))
    with pytest.raises(InputError, match=r"run.json does not say the seed"):
        run.seed  # noqa: B018
    with pytest.raises(InputError, match="is of another version; name the teacher yourself"):
        ProbedRun("off", write_run(tmp_path / "old", colour="red")).recipe  # noqa: B018


def test_arms_have_the_names_of_the_report(tmp_path: Path) -> None:
    write_run(tmp_path / "off" / "seed_0", teacher=None)
    write_run(tmp_path / "shuffled_tiny+gam" / "seed_0", teacher="tiny")
    assert [run.arm for run in runs_of_ablation(tmp_path)] == ["off", "shuffled_tiny+gam"]
    arms = [Arm(name="off", kind="off", settings={}), Arm(name="shuffled:tiny+gam", kind="control", settings={})]
    record = AblationRecord(name="test", arms=arms, recipe={}, records=[])
    write_report(record, compare(record), tmp_path)
    assert [run.arm for run in runs_of_ablation(tmp_path)] == ["off", "shuffled:tiny+gam"]
