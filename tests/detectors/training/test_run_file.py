import json
from datetime import datetime, timezone
from pathlib import Path

import pytest

from detectors.training.run_file import begin_run, end_run, read_run
from vfmdistill.errors import InputError


def test_every_start_is_kept_and_the_facts_are_those_of_the_last(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    begin_run(folder, {"command": "train", "environment": {"a": 1}, "recipe": {"epochs": 4}})
    end_run(folder, finished=False)
    begin_run(folder, {"command": "train --resume", "environment": {"a": 2}, "recipe": {"epochs": 4}}, epoch=2, step=37)
    found = read_run(folder)
    first, second = found["sessions"]
    assert (first["command"], first["epoch"], first["step"], first["environment"]) == ("train", 0, 0, {"a": 1})
    assert (second["command"], second["epoch"], second["step"]) == ("train --resume", 2, 37)
    assert "ended" in first
    assert "ended" not in second
    assert (found["command"], found["environment"], found["finished"]) == ("train --resume", {"a": 2}, False)


def test_the_end_is_added(tmp_path: Path) -> None:
    begin_run(tmp_path, {"command": "train", "recipe": {}})
    end_run(tmp_path, finished=True, best={"AP": 0.5, "epoch": 3})
    found = read_run(tmp_path)
    assert found["finished"] is True
    assert found["best"] == {"AP": 0.5, "epoch": 3}
    started, ended = (datetime.fromisoformat(found["sessions"][0][key]) for key in ("started", "ended"))
    assert started <= ended <= datetime.now(timezone.utc)
    assert started.utcoffset() is not None


def test_no_file_is_no_facts_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert read_run(tmp_path) == {}
    for content in ("{", "[]"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(InputError, match=r"run\.json"):
            read_run(tmp_path)


def test_what_it_holds_is_json(tmp_path: Path) -> None:
    begin_run(tmp_path, {"command": "train", "teacher": None})
    assert json.loads((tmp_path / "run.json").read_text())["teacher"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
