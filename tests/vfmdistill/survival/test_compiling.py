from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.students import hooks, step
from support.training_runs import IMAGES as BATCHES
from support.training_runs import Checkpointed, agrees, parts, train
from torch import nn

from vfmdistill import CaptureError, attach


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("when", ["before", "after", "in place, before", "in place, after", "the tap, after"])
def test_compiled_students_learn_the_same(when: str, plain: dict[str, Any]) -> None:
    student, teacher = parts()
    attached: Any = student

    def wrap(network: nn.Module) -> nn.Module:
        if when == "after":
            compiled: Any = torch.compile(network, backend="aot_eager", fullgraph=True)
            return compiled
        if when == "in place, after":
            network.compile(backend="aot_eager", fullgraph=True)
        if when == "the tap, after":
            network.get_submodule("body").compile(backend="aot_eager", fullgraph=True)
        return network

    if when == "before":
        attached = torch.compile(student, backend="aot_eager", fullgraph=True)
    if when == "in place, before":
        student.compile(backend="aot_eager", fullgraph=True)
    assert agrees(train(attached, teacher, slice(None), wrap=wrap), plain)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("inside", [True, False])
def test_checkpoints_and_compiling_together(inside: bool, plain: dict[str, Any]) -> None:
    def wrap(network: nn.Module) -> nn.Module:
        if inside:
            network.get_submodule("body").compile(backend="aot_eager")
            return network
        compiled: Any = torch.compile(network, backend="aot_eager")
        return compiled

    student, teacher = parts(Checkpointed)
    assert agrees(train(student, teacher, slice(None), wrap=wrap), plain)
    with attach(student, teacher, tap="body", probe=BATCHES[0]) as distiller:
        step(wrap(student), distiller, BATCHES[0])
        with pytest.raises(CaptureError, match="was not called"):
            distiller.loss(BATCHES[0])


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_and_run_before_attaching_is_said_and_mended() -> None:
    student, teacher = parts()
    compiled = torch.compile(student, backend="eager")
    compiled(BATCHES[0])
    with attach(compiled, teacher, tap="body", probe=BATCHES[0]) as distiller:
        compiled(BATCHES[0])
        with pytest.raises(CaptureError, match=r"compiled and run before attaching.*torch\.compiler\.reset\(\)"):
            distiller.loss(BATCHES[0])
        torch.compiler.reset()
        assert step(compiled, distiller, BATCHES[0]).isfinite()


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_code_that_ran_in_eval_mode_does_not_hide_the_tap_from_the_probe() -> None:
    student, teacher = parts()
    student.compile(backend="eager")
    with torch.no_grad():
        student.eval()(BATCHES[0])
    student.train()
    with attach(student, teacher, tap="body", probe=BATCHES[0]) as distiller:
        assert [tap.path for tap in distiller.taps] == ["body"]
    assert hooks(student) == 0


@pytest.mark.usefixtures("_fresh_compiler")
def test_nothing_is_captured_by_compiled_code_after_detaching() -> None:
    student, teacher = parts()
    distiller = attach(student, teacher, tap="body", probe=BATCHES[0])
    (capture,) = distiller._student_maps._captures
    compiled = torch.compile(student, backend="eager")
    step(compiled, distiller, BATCHES[0])
    distiller.detach()
    compiled(BATCHES[0])
    assert capture._output is None
