import os
import signal
import threading

import pytest

from detectors.training import interrupt
from detectors.training.interrupt import Interrupted, StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_does_what_it_did(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupt, "ECHO_SECONDS", 0.0)
    before = signal.getsignal(number)
    heard = []
    signal.signal(number, lambda *_: heard.append(number))
    try:
        with StopSignals() as stop:
            assert stop.received is None
            os.kill(os.getpid(), number)
            assert (stop.received, heard) == (number, [])
            os.kill(os.getpid(), number)
            assert heard == [number]
        os.kill(os.getpid(), number)
        assert heard == [number] * 2
    finally:
        signal.signal(number, before)


def test_a_sigterm_that_is_heard_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    before, now, heard = signal.getsignal(signal.SIGTERM), [100.0], []
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    signal.signal(signal.SIGTERM, lambda *_: heard.append(now[0]))
    try:
        with StopSignals() as stop:
            for now[0] in (100.0, 100.1, 104.9, 105.0):
                os.kill(os.getpid(), signal.SIGTERM)
            assert (stop.received, heard) == (signal.SIGTERM, [105.0])
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_given_back_also_by_an_exception() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    inside = []

    def fail() -> None:
        with StopSignals():
            inside.append(signal.getsignal(signal.SIGTERM))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert inside != before[:1]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_in_another_thread_nothing_is_touched() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter() -> None:
        with StopSignals() as stop:
            seen.extend([stop.received, signal.getsignal(signal.SIGTERM)])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [None, before]


def test_exit_status_is_that_of_a_shell() -> None:
    assert Interrupted("stopped", signal.SIGTERM).exit_status == 143
    assert Interrupted("stopped", signal.SIGINT).exit_status == 130
