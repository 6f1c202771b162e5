import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detectors.training import monitor as module
from detectors.training.monitor import Monitor
from vfmdistill.errors import InputError

LOSSES = {"loss": 20.5, "loss_mal": 6.25, "loss_semantic": 1.76, "weight": 5.0, "semantic_loss": 0.353, "share": 1.75}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def on_a_terminal(monitor: Monitor) -> io.StringIO:
    """Let a monitor write as to a terminal of 200 columns; return what it writes."""
    written = io.StringIO()
    monitor.console = Console(file=written, force_terminal=True, width=200, markup=False, color_system=None)
    return written


def test_metrics_of_equal_runs_are_equal_and_times_are_elsewhere(tmp_path: Path) -> None:
    for name, pause in (("one", 0.0), ("two", 0.05)):
        monitor = Monitor(tmp_path / name, batch_size=4, epochs=2)
        for epoch in range(2):
            for _ in monitor.track(range(3), 3, f"epoch {epoch}", epoch=epoch):
                time.sleep(pause)
            monitor.epoch({"epoch": epoch, "loss": 1 / 3, "AP_per_class": {"a": 0.1}}, "note", step=3 * epoch)
        monitor.close()
    one, two = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
    assert lines(tmp_path / "one" / "metrics.jsonl")[1] == {"epoch": 1, "loss": 1 / 3, "AP_per_class": {"a": 0.1}}
    for line in lines(tmp_path / "two" / "timing.jsonl"):
        assert 0.15 <= line["training_seconds"] <= line["seconds"] < 5
        assert line["images_per_second"] == pytest.approx(12 / line["training_seconds"])
        assert line["peak_memory"]["bytes"] > 0


def test_evaluation_counts_as_time_of_the_epoch_but_not_of_training(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, batch_size=4)
    for _ in monitor.track(range(3), 3, "epoch 0", epoch=0):
        pass
    for _ in monitor.track(range(2), 2, "evaluation"):
        time.sleep(0.1)
    monitor.epoch({"epoch": 0})
    (line,) = lines(tmp_path / "timing.jsonl")
    assert line["training_seconds"] < 0.1
    assert line["seconds"] >= 0.2


def test_steps_of_an_epoch_that_is_resumed_are_counted_once(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, batch_size=4, epochs=2)
    for number, (_, progress) in enumerate(monitor.track(range(2), 5, "epoch 1", epoch=1, first=3)):
        assert [task.completed for task in progress.tasks] == [3 + number, 8 + number]
        assert [task.total for task in progress.tasks] == [5, 10]
        time.sleep(0.05)
    monitor.epoch({"epoch": 1})
    (line,) = lines(tmp_path / "timing.jsonl")
    assert line["images_per_second"] * line["training_seconds"] == pytest.approx(8)


def test_the_time_of_an_interrupted_epoch_is_kept(tmp_path: Path) -> None:
    def interrupted(monitor: Monitor) -> None:
        for batch, _ in monitor.track(range(10), 10, "epoch 4", epoch=4):
            if batch == 2:
                raise KeyboardInterrupt

    monitor = Monitor(tmp_path, batch_size=4)
    with pytest.raises(KeyboardInterrupt):
        interrupted(monitor)
    assert [line["epoch"] for line in lines(tmp_path / "timing.jsonl")] == [4]
    for _ in monitor.track(range(2), 2, "epoch 4", epoch=4):
        pass
    monitor.close()  # interrupted in the evaluation
    assert [line["epoch"] for line in lines(tmp_path / "timing.jsonl")] == [4, 4]
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_resuming_drops_later_lines_and_curves_but_no_time(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, batch_size=4)
    for epoch in range(3):
        for _ in monitor.track(range(2), 2, "", epoch=epoch):
            pass
        monitor.epoch({"epoch": epoch, "loss": float(epoch)}, step=2 * epoch + 2)
    monitor.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "lo')
    kept = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)[:1]
    resumed = Monitor(tmp_path, batch_size=4, first_epoch=1, first_step=2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(kept)
    assert [line["epoch"] for line in lines(tmp_path / "timing.jsonl")] == [0, 1, 2]
    resumed.epoch({"epoch": 1, "loss": 7.0}, step=4)
    resumed.close()
    assert [line["loss"] for line in lines(tmp_path / "metrics.jsonl")] == [0.0, 7.0]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("epoch/loss")] == [(2, 0.0), (4, 7.0)]


def test_a_line_that_is_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("what?\n")
    with pytest.raises(InputError, match=r"line 1 of .*metrics\.jsonl"):
        Monitor(tmp_path)


def test_other_processes_write_show_and_send_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent: list[Any] = []
    monitor = Monitor(tmp_path / "run", silent=True, batch_size=4, tracker=lambda *values: sent.append(values))
    for _, progress in monitor.track(range(2), 2, "epoch 0", epoch=0):
        assert progress.disable
        monitor.step(LOSSES, 1)
    monitor.epoch({"epoch": 0, "loss": 1.0}, step=2)
    monitor.say("hello")
    monitor.close()
    assert sent == []
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_curves_and_the_tracker_get_the_same(tmp_path: Path) -> None:
    sent: list[tuple[dict[str, float], int]] = []
    monitor = Monitor(tmp_path, batch_size=4, tracker=lambda values, step: sent.append((values, step)))
    for _ in monitor.track(range(1), 1, "epoch 0", epoch=0):
        monitor.step(LOSSES, 1)
    figures = {"epoch": 0, "loss": 2.0, "modulation": "raised", "share": None, "AP_per_class": {"ring/disc": 0.5}}
    monitor.epoch(figures, step=1)
    monitor.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {(step, name) for values, step in sent for name in values} == {
        (event.step, tag) for tag in events.Tags()["scalars"] for event in events.Scalars(tag)
    }
    (first, _), (second, _) = sent
    assert first == {f"train/{name}": value for name, value in LOSSES.items()}
    assert {"epoch/loss", "epoch/images_per_second", "AP_per_class/ring/disc"} <= second.keys()
    assert not {"epoch/modulation", "epoch/share", "epoch/peak_memory"} & second.keys()
    assert events.Scalars("AP_per_class/ring/disc")[0].value == 0.5


def test_the_bar_shows_losses_weight_share_speed_memory_and_the_rest_of_the_run(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, batch_size=4, epochs=3)
    written = on_a_terminal(monitor)
    for _, progress in monitor.track(range(4), 4, "epoch 1", epoch=1):
        time.sleep(0.02)
        monitor.step(LOSSES, 1)
        figures = progress.tasks[0].fields["figures"]
    assert figures.startswith("loss 20.5  mal 6.25  λ 5  semantic 0.353  share 1.75 %  ")
    speed = float(figures.split(" images/s")[0].split()[-1])
    assert 10 < speed < 4 / 0.02
    assert figures.endswith((" (process)", " (CUDA)"))
    shown = written.getvalue()
    assert "epoch 1" in shown
    assert "4/4" in shown
    assert "run of 3 epochs" in shown
    assert "8/12" in shown
    assert "loss 20.5  mal 6.25" in shown


def test_without_a_terminal_there_is_a_line_now_and_then(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monitor = Monitor(tmp_path)
    monkeypatch.setattr(module, "_QUIET", 0.05)
    for number, _ in enumerate(monitor.track(range(3), 3, "epoch 0", epoch=0)):
        if number == 1:
            time.sleep(0.1)
        monitor.step(LOSSES, number)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert printed.startswith("epoch 0  step 1 of 3  loss 20.5")


def test_the_line_of_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = Monitor(tmp_path, batch_size=4)
    for _ in monitor.track(range(1), 1, "epoch 7", epoch=7):
        pass
    monitor.epoch({"epoch": 7, **LOSSES, "share": None, "AP": 0.59381, "bad_steps": 2, "learning_rate": 0.1}, "so [x]")
    printed = capsys.readouterr().out.split("  ")
    assert printed[:6] == ["epoch 7", "loss 20.5", "semantic 0.353", "λ 5", "AP 0.5938", "bad steps 2"]
    assert printed[6].endswith(" images/s")
    assert printed[7].endswith((" (process)", " (CUDA)"))
    assert printed[8].endswith(" s")
    assert printed[9] == "so [x]\n"


def test_what_is_said_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Monitor(tmp_path).say("classes [bold]dog[/bold] :smile: " + "x" * 300)
    assert capsys.readouterr().out == "classes [bold]dog[/bold] :smile: " + "x" * 300 + "\n"
