"""The workers of one machine: threads that each wait for a run's process, and a bar over all runs."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType

from rich.console import Console

from detectors.training.recipe import Recipe

from .grid import check_arm
from .progress import watch
from .study import AblationStudy
from .worker import Worker, places


def run_crew(
    study: AblationStudy,
    recipe: Recipe,
    root: Path,
    *,
    workers: int,
    console: Console,
    keep_checkpoints: bool = False,
) -> int | None:
    """Do the runs of a study until none is left, or until SIGTERM or SIGINT: then those that go on are saved first.

    Call it in the main thread, which gets the signals.

    Args:
        study: whose runs.
        recipe: that all arms share.
        root: folder of the ablation.
        workers: runs at a time.
        console: where progress is shown.
        keep_checkpoints: whether finished runs keep theirs, besides the trained detector.

    Returns:
        Number of the signal that stopped it, None where none did.

    Raises:
        DistillError: the storage fails; runs of other workers were saved.
    """
    stop, over = threading.Event(), threading.Event()
    received: list[int] = []
    failures: list[BaseException] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stop.set()

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    def work(worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:  # raised below: a thread's own would only be printed
            failures.append(error)
            stop.set()

    epochs = {name: check_arm(recipe, arm).epochs for name, arm in study.arms.items()}
    crew = [
        Worker(study, recipe, root, place, stop, say, keep_checkpoints=keep_checkpoints)
        for place in places(workers, recipe)
    ]
    threads = [threading.Thread(target=work, args=(worker,)) for worker in crew]
    watcher = threading.Thread(target=watch, args=(study, epochs, console, over), daemon=True)
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for thread in (*threads, watcher):
            thread.start()
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)  # signals come in between
    finally:
        over.set()
        watcher.join()
        for number, handler in before.items():
            signal.signal(number, handler)
    if failures:
        raise failures[0]
    return received[0] if received else None
