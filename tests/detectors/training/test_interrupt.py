import os
import signal
import threading

import pytest

from detectors.training.interrupt import Interrupted, StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_noted_and_the_second_does_what_it_did(number: signal.Signals) -> None:
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
