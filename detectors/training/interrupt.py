"""StopSignals: SIGTERM and SIGINT let a run finish its step and save, instead of ending it on the spot."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType

from vfmdistill.errors import DistillError

ECHO_SECONDS = 5.0


class Interrupted(DistillError):  # noqa: N818 - the run did as it was told
    """A run was stopped by a signal, after it saved everything; the first process's message says how to go on.

    Attributes:
        signal: number of the signal.
        exit_status: what a program that ends for this reason returns: 128 + the signal's number.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number
        self.exit_status = 128 + number


class StopSignals:
    """Notes SIGTERM and SIGINT while it is entered; a second one of the same kind does what it always did.

    A SIGTERM that follows another within five seconds is the same wish, heard twice: a scheduler signals all processes
    of a job, and the launcher among them passes it on to those that it started. Who presses Ctrl-C twice means it.

    Outside the main thread, where Python lets nobody handle signals, it notes nothing.

    Attributes:
        received: number of the signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, signal._HANDLER] = {}
        self._first_term: float | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in list(self._before):
            self._restore(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            now = time.monotonic()
            if self._first_term is None:
                self._first_term, self.received = now, number
            elif now - self._first_term >= ECHO_SECONDS:
                self._restore(number)
                signal.raise_signal(number)
        else:
            self.received = number
            self._restore(number)

    def _restore(self, number: int) -> None:
        # None stands for a handler that was not set from Python and cannot be put back from there.
        before = self._before.pop(number)
        signal.signal(number, signal.SIG_DFL if before is None else before)
