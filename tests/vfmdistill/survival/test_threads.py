from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from support.training_runs import IMAGES as BATCHES
from support.training_runs import agrees, parts, train
from torch import nn


def test_a_thread_that_runs_another_model_changes_nothing(plain: dict[str, Any]) -> None:
    student, teacher = parts()
    stop, ran = threading.Event(), threading.Event()
    other = copy.deepcopy(student)

    def load() -> None:
        while not stop.is_set():
            other(BATCHES[0]).sum().backward()
            with torch.no_grad():
                student.body(student.stem(BATCHES[0]))  # the tap
            ran.set()

    def begin(network: nn.Module) -> nn.Module:
        nonlocal other
        other = copy.deepcopy(network)
        thread.start()
        assert ran.wait(10)
        return network

    thread = threading.Thread(target=load, daemon=True)
    try:
        assert agrees(train(student, teacher, slice(None), wrap=begin), plain)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
