"""Monitor: what one sees of a run — progress bars, a line per epoch, TensorBoard files and metrics.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")


class Monitor:
    """Write a run's figures to the terminal and to its folder.

    `metrics.jsonl` holds one line an epoch and only what the run determines (no times), so that two equal runs write
    equal files. A silent monitor (any process but the first) writes nothing.

    Args:
        folder: the run's folder.
        silent: whether to write nothing.
        first_epoch: epoch that this process starts with; what an interrupted run wrote from there on is dropped.
        first_step: optimizer steps before it; curves behind them are dropped too.
    """

    def __init__(self, folder: Path, *, silent: bool = False, first_epoch: int = 0, first_step: int = 0) -> None:
        self.console = Console(quiet=silent)
        self._silent = silent
        self._path = folder / "metrics.jsonl"
        self._writer: Any = None
        if silent:
            return
        from torch.utils.tensorboard.writer import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._drop_lines_from(first_epoch)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)

    def _drop_lines_from(self, epoch: int) -> None:
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True) if self._path.exists() else []
        # A line that was not finished belongs to an epoch without a checkpoint.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] < epoch]
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self._path)

    def track(self, batches: Iterable[T], total: int, title: str) -> Iterator[tuple[T, Progress]]:
        """Yield the batches under a progress bar, with the bar: its first task has a field "figures" for text."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                   TextColumn("{task.fields[figures]}"))  # fmt: skip
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(title, total=total, figures="")
            for batch in batches:
                yield batch, progress
                progress.advance(task)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write curves for TensorBoard."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def epoch(self, metrics: Mapping[str, Any], note: str) -> None:
        """Append an epoch's figures to metrics.jsonl and print a line.

        Args:
            metrics: must hold "epoch"; everything in it must follow from the run alone.
            note: what else to print, for example the speed.
        """
        if self._silent:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")
        shown = "  ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in metrics.items() if k in _SHOWN
        )
        self.say(f"{shown}  {note}")

    def say(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Flush the curves."""
        if self._writer is not None:
            self._writer.close()


_SHOWN = ("epoch", "loss", "semantic_loss", "weight", "share", "AP", "AP50")
