from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_run import register_tiny_teacher, tiny_recipe

from detectors.ablation.probe_runs import ProbedRun
from detectors.ablation.probe_teachers import named_teachers, teachers_of
from detectors.training.run_file import begin_run
from vfmdistill.errors import InputError, UnknownNameError


@pytest.fixture(scope="module", autouse=True)
def tiny() -> None:
    register_tiny_teacher()


def run(folder: Path, **settings: Any) -> ProbedRun:
    begin_run(folder, {"recipe": tiny_recipe("data", folder, **settings).model_dump(mode="json")})
    return ProbedRun("arm", folder)


def test_teachers_are_taken_by_name() -> None:
    teachers = named_teachers(["tiny", "tiny2"], [])
    assert list(teachers) == ["tiny", "tiny2"]
    assert {teacher.dtype for teacher in teachers.values()} == {torch.float32}
    assert named_teachers(["none"], []) == {}


def test_weights_belong_to_a_teacher(tmp_path: Path) -> None:
    for text in ("other=file.pth", "tiny", "tiny="):
        with pytest.raises(InputError, match="expected TEACHER=FILE with one of --teachers"):
            named_teachers(["tiny"], [text])
    with pytest.raises(UnknownNameError, match="unknown teacher 'nobody'"):
        named_teachers(["nobody"], [])


def test_teachers_of_runs_are_each_there_once_and_controls_are_none(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "a", teacher=None),
        run(tmp_path / "b", teacher="tiny"),
        run(tmp_path / "c", teacher="tiny", seed=1),
        run(tmp_path / "d", teacher="tiny=2,tiny2=1"),
        run(tmp_path / "e", teacher="dinov2_vits14", teacher_control="shuffled"),
    ]
    teachers = teachers_of(runs)
    assert list(teachers) == ["tiny", "tiny2"]
    assert [teacher.spec.name for teacher in teachers.values()] == ["tiny", "tiny2"]
    assert {teacher.dtype for teacher in teachers.values()} == {torch.float32}
    assert teachers_of(runs[:1]) == {}


def test_a_cache_of_the_runs_is_left_alone(tmp_path: Path) -> None:
    teachers = teachers_of([run(tmp_path / "a", teacher="tiny", teacher_cache=tmp_path / "cache")])
    teachers["tiny"](torch.zeros(1, 3, 64, 64), (2, 2))
    assert not (tmp_path / "cache").exists()


def test_one_teacher_read_out_in_two_ways_is_an_error(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", teacher="tiny"), run(tmp_path / "b", teacher="tiny", teacher_blocks=[3])]
    with pytest.raises(InputError, match="teacher 'tiny' out in several ways; say by --teachers"):
        teachers_of(runs)
