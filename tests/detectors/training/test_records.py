import json
from pathlib import Path

import pytest

from detectors.training.records import RecordError, append_line, keep_lines, read_lines, replace_text
from vfmdistill.errors import InputError


def test_lines_come_back_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_line(path, {"epoch": 0, "loss": 0.1, "share": float("nan"), "AP_per_class": {"λ": float("inf"), "b": 0.5}})
    append_line(path, {"epoch": 1})
    assert read_lines(path) == [
        {"epoch": 0, "loss": 0.1, "share": None, "AP_per_class": {"λ": None, "b": 0.5}},
        {"epoch": 1},
    ]
    assert "NaN" not in path.read_text()
    assert read_lines(tmp_path / "nowhere") == []


def test_a_line_without_its_end_is_left_out_and_removed_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2, "lo')
    assert [line["epoch"] for line in read_lines(path)] == [0, 1]
    keep_lines(path, lambda line: line["epoch"] != 0)
    append_line(path, {"epoch": 2})
    assert path.read_text() == '{"epoch": 1}\n{"epoch": 2}\n'


def test_kept_lines_stay_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text('{"epoch":0,   "x": 1e-5}\n')
    keep_lines(path, lambda line: True)
    assert path.read_text() == '{"epoch":0,   "x": 1e-5}\n'


@pytest.mark.parametrize("broken", ["nothing", "[1]", '{"loss": 1}', '{"epoch": "1"}'])
def test_a_line_of_something_else_is_named(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "lines"
    path.write_text('{"epoch": 0}\n' + broken + '\n{"epoch": 2}\n')
    with pytest.raises(InputError, match=r"line 2 of .*lines is .*expected a JSON object with an epoch"):
        read_lines(path)


def test_what_cannot_be_written_is_said_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page"
    replace_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("detectors.training.records.flush", full)
        with pytest.raises(RecordError, match=r"cannot write .*page: No space left on device; make room"):
            replace_text(path, "new")
        patched.setattr("detectors.training.records.os.fsync", full)
        with pytest.raises(RecordError, match=r"cannot write .*lines: No space left"):
            append_line(tmp_path / "lines", {"epoch": 0})
    assert path.read_text() == "old"
    assert not list(tmp_path.glob("*.tmp"))
    replace_text(path, json.dumps("new"))
    assert path.read_text() == '"new"'
