from __future__ import annotations

import io
from pathlib import Path

import pytest
from pydantic import Field
from rich.console import Console
from support.tiny_detector import tiny_detector

from detectors.command_line import PredictorOptions, parse_options, plain_console, track
from detectors.pretrained import save_pretrained
from vfmdistill.errors import InputError


class Options(PredictorOptions):
    classes: list[str] = Field([], description="names of classes")
    draw: bool = Field(True, description="draw")


def parse(*arguments: str) -> Options:
    return parse_options(Options, arguments, program="detect.py", description="Detect.")


def test_reads_options_of_all_kinds() -> None:
    options = parse(
        "--model", "m", "--input-size", "64,96", "--batch-size", "3", "--classes", "a b,c", "--no-draw",
        "--precision", "bf16",
    )  # fmt: skip
    assert (options.model, options.input_size, options.batch_size) == (Path("m"), (64, 96), 3)
    assert (options.classes, options.draw, options.precision) == (["a b", "c"], False, "bf16")
    assert parse("--model", "m", "--input-size", "320").input_size == (320, 320)
    assert parse("--model", "m").input_size is None


def test_everything_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        parse("--input-size", "100", "--precision", "half", "--batch-size", "0")
    message = str(caught.value)
    assert "--model is missing" in message
    assert "nearest sizes that work: 96 × 96 and 128 × 128" in message
    assert "--precision: Input should be 'fp32', 'bf16' or 'fp16' (given: 'half')" in message
    assert "--batch-size" in message


def test_unknown_options_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--model", "m", "--colour", "red")
    assert caught.value.code == 2
    assert "--colour" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        parse("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "Detect." in shown
    assert "names of classes" in shown


def test_variables_of_the_environment_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "elsewhere")
    monkeypatch.setenv("BATCH_SIZE", "99")
    assert parse("--model", "m").batch_size == 8


def test_opens_the_predictor_that_is_asked_for(tmp_path: Path) -> None:
    save_pretrained(tiny_detector(), tmp_path)
    words = ("--device", "cpu", "--input-size", "96", "--batch-size", "3", "--top-k", "7")
    predictor = parse("--model", str(tmp_path), *words).open(threshold=0.25)
    assert (predictor.device.type, predictor.input_size, predictor.batch_size) == ("cpu", (96, 96), 3)
    assert (predictor.top_k, predictor.threshold) == (7, 0.25)


def test_brackets_and_colons_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    plain_console().print("[bold] :cat: 1.5")
    assert capsys.readouterr().out == "[bold] :cat: 1.5\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_shown_on_terminals_only(terminal: bool) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal)
    assert list(track(iter(range(3)), "counting", console)) == [0, 1, 2]
    assert ("counting" in written.getvalue()) is terminal
