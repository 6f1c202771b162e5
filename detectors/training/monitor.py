"""Monitor: what one sees of a run — progress bars, a line per epoch, TensorBoard files, metrics.jsonl, timing.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from .environment import Peak, peak_memory
from .epoch_clock import EpochClock
from .records import RecordError, append_line, keep_lines
from .run_text import duration, figure, memory

T = TypeVar("T")

METRICS, TIMING = "metrics.jsonl", "timing.jsonl"
_QUIET = 60.0  # seconds between two lines where there is no terminal to show a bar on
_NAMES = {"weight": "λ", "semantic_loss": "semantic", "bad_steps": "bad steps"}
_OF_EPOCH = ("epoch", "loss", "semantic_loss", "weight", "share", "AP", "AP50", "bad_steps")


class Monitor:
    """Write a run's figures to the terminal and to its folder.

    `metrics.jsonl` holds one line an epoch and only what the run determines (no times), so that two equal runs write
    equal files. `timing.jsonl` holds what differs: a line for every time that an epoch was worked on, more than one
    for an epoch that was interrupted, with "epoch", "seconds" (evaluation included), "training_seconds",
    "images_per_second" (of training, over all processes) and "peak_memory" (see `environment.Peak`). A silent
    monitor (any process but the first) writes nothing.

    Args:
        folder: the run's folder.
        silent: whether to write nothing.
        first_epoch: epoch that this process starts with; what an interrupted run wrote from there on is dropped.
        first_step: optimizer steps before it; curves behind them are dropped too.
        epochs: of the whole run, for the time that it still takes; None shows that of the epoch only.
        batch_size: images of an optimizer step over all processes, for images per second.
        tracker: is called with everything that TensorBoard gets: (values by name, step).

    Raises:
        InputError: a line of metrics.jsonl cannot be read.
        RecordError: a line cannot be written, for example for want of space.
    """

    def __init__(
        self,
        folder: Path,
        *,
        silent: bool = False,
        first_epoch: int = 0,
        first_step: int = 0,
        epochs: int | None = None,
        batch_size: int | None = None,
        tracker: Callable[[dict[str, float], int], None] | None = None,
    ) -> None:
        # Paths and class names are shown as they are, brackets and colons too.
        self.console = Console(quiet=silent, markup=False, emoji=False, highlight=False)
        self._folder, self._silent, self._epochs, self._batch_size = folder, silent, epochs, batch_size
        self._tracker = None if silent else tracker
        self._writer: Any = None
        self._progress: _Display | None = None
        self._clock: EpochClock | None = None
        self._spoken = time.monotonic()
        if silent:
            return
        from torch.utils.tensorboard.writer import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        keep_lines(folder / METRICS, lambda line: line["epoch"] < first_epoch)
        keep_lines(folder / TIMING, lambda line: True)  # time that was spent on what is repeated now was spent
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def track(
        self, batches: Iterable[T], total: int, title: str, *, epoch: int | None = None, first: int = 0
    ) -> Iterator[tuple[T, Progress]]:
        """Yield the batches under a progress bar, with the bar: its first task has a field "figures" for text.

        Args:
            batches: what is left of them.
            total: how many there are, with those that were done before.
            title: stands before the bar.
            epoch: the epoch that these steps train: it is timed, and the rest of the run estimated from it. None for
                anything else, for example an evaluation.
            first: number of the first of `batches`.
        """
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        ]  # fmt: skip
        hidden = self._silent or not self.console.is_terminal
        with _Display(*columns, console=self.console, transient=True, disable=hidden) as display:
            task = display.add_task(title, total=total, completed=first, figures="")
            run = None
            if epoch is not None and self._epochs is not None:
                run = display.add_task(
                    f"run of {self._epochs} epochs", total=total * self._epochs, completed=total * epoch + first
                )
            self._progress = display
            clock = None if epoch is None else EpochClock(epoch)
            self._clock = clock or self._clock
            try:
                for batch in batches:
                    yield batch, display
                    display.advance(task)
                    if run is not None:
                        display.advance(run)
                    if clock is not None:
                        clock.steps += 1
            except GeneratorExit:  # the run is interrupted
                self._record_unfinished()
                raise
            finally:
                self._progress = None
                if clock is not None:
                    clock.trained()

    def step(self, values: Mapping[str, float], step: int) -> None:
        """Show the figures of a step and write them as curves.

        Args:
            values: losses by name ("loss" is their total), and what the distiller measured.
            step: optimizer steps so far.
        """
        self.scalars({f"train/{name}": value for name, value in values.items()}, step)
        if self._silent or self._progress is None:
            return
        task = self._progress.tasks[0]
        shown = [_shown(name, value) for name, value in values.items() if name != "loss_semantic"]  # λ × semantic
        if self._batch_size is not None and task.speed:
            shown.append(f"{figure(task.speed * self._batch_size)} images/s")
        if (peak := peak_memory()) is not None:
            shown.append(_memory(peak))
        text = "  ".join(shown)
        self._progress.update(task.id, figures=text)
        if not self.console.is_terminal and time.monotonic() - self._spoken >= _QUIET:
            self.say(f"{task.description}  step {task.completed:.0f} of {task.total:.0f}  {text}")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write curves for TensorBoard and the tracker."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker(dict(values), step)

    def epoch(self, metrics: Mapping[str, Any], note: str = "", *, step: int | None = None) -> None:
        """Append an epoch's figures to metrics.jsonl, its times to timing.jsonl, and print a line.

        Args:
            metrics: must hold "epoch"; everything in it must follow from the run alone.
            note: what else to print.
            step: optimizer steps so far; given, the figures become curves too.
        """
        if self._silent:
            return
        append_line(self._folder / METRICS, metrics)
        timing = self._record_time()
        if step is not None:
            numbers = {**metrics, **{name: value for name, value in (timing or {}).items() if name != "epoch"}}
            curves = {f"epoch/{name}": value for name, value in numbers.items() if _is_number(value)}
            per_class = {f"AP_per_class/{name}": ap for name, ap in (metrics.get("AP_per_class") or {}).items()}
            self.scalars({**curves, **per_class}, step)
        shown = [_shown(name, metrics[name]) for name in _OF_EPOCH if _is_number(metrics.get(name))]
        if timing is not None:
            speed, peak = timing["images_per_second"], timing["peak_memory"]
            shown += [] if speed is None else [f"{figure(speed)} images/s"]
            shown += [] if peak is None else [_memory(Peak(**peak))]
            shown.append(duration(timing["seconds"]))
        self.say("  ".join([*shown, note]).rstrip())

    def _record_time(self) -> dict[str, Any] | None:
        """Write and return the line of timing.jsonl for the epoch that was tracked last; None if that was done."""
        clock, self._clock = self._clock, None
        if clock is None or self._silent:
            return None
        line = clock.line(self._batch_size)
        append_line(self._folder / TIMING, line)
        return line

    def _record_unfinished(self) -> None:
        with suppress(RecordError):  # what ended the epoch is the news
            self._record_time()

    def say(self, text: str) -> None:
        """Print a sentence."""
        self._spoken = time.monotonic()
        self.console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Flush the curves."""
        self._record_unfinished()
        if self._writer is not None:
            self._writer.close()


class _Display(Progress):
    """Progress bars, and under them the figures of the first."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.tasks and self.tasks[0].fields["figures"]:
            yield Text(self.tasks[0].fields["figures"])


def _shown(name: str, value: float) -> str:
    return f"{_NAMES.get(name, name.removeprefix('loss_'))} {figure(value)}{' %' if name == 'share' else ''}"


def _memory(peak: Peak) -> str:
    return f"{memory(peak.bytes)} ({peak.of})"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
