"""`attach` around every kind of student: what it teaches, and what it leaves behind."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support.student_zoo import ZOO, Row, tensors_in
from support.students import Wide, hooks
from support.traces import equal, tensors_of, trace
from torch import Tensor, nn

from vfmdistill import Distiller, Teacher, attach

TEACHER = Teacher(Wide())


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of timm, torchvision and transformers, about how weights are drawn
        yield


def _built(row: Row) -> nn.Module:
    torch.manual_seed(0)
    return row.build().train()


def _attached(row: Row, student: nn.Module) -> Distiller:
    return attach(student, TEACHER, tap=row.tap, modulator=1.0, probe=row.images[:1] if row.sized else None)


def _reached(distiller: Distiller, outputs: list[Any]) -> set[int]:
    """Return what the outputs of the taps depend on: the ids of parameters."""
    parameters = [parameter for parameter in distiller.student.parameters() if parameter.requires_grad]
    total = torch.stack([t.square().sum() for t in tensors_in(outputs) if t.requires_grad]).sum()
    gradients = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
    return {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}


def test_the_table_is_long_enough() -> None:
    count = {kind: sum(name.startswith(f"{kind},") for name in ZOO) for kind in ("ours", "timm", "torchvision", "odd")}
    count["transformers"] = sum(name.startswith("transformers,") for name in ZOO)
    assert all(number >= 5 for number in count.values())
    assert count["timm"] >= 6
    assert sum(count.values()) == len(ZOO) >= 25


@pytest.mark.parametrize("name", ZOO)
def test_the_semantic_loss_teaches_the_tap_and_nothing_after_it(name: str) -> None:
    row = ZOO[name]
    student, twin = _built(row), _built(row)
    assert equal(tensors_of(student), tensors_of(twin))
    before = [parameter.detach().clone() for parameter in student.parameters()]
    with _attached(row, student) as distiller:
        assert row.chosen in ((), tuple(tap.path for tap in distiller.taps))
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)
        for _ in range(3):
            loss = row.loss(student, row.images) + distiller.loss(row.images)
            loss.backward()
            distiller.observe()
            optimizer.step()
            optimizer.zero_grad()
            assert loss.isfinite()
            assert 0 < distiller.metrics()["share"] < 100
        assert distiller.update().share is not None
        outputs: list[Any] = []
        for tap in distiller.taps:
            tap.module.register_forward_hook(lambda module, args, output: outputs.append(output))
        row.loss(student, row.images)
        semantic = distiller.loss(row.images)
        reached = _reached(distiller, outputs)
        semantic.backward()
    got = {id(parameter) for parameter in student.parameters() if parameter.grad is not None}
    assert got <= reached
    for tap in distiller.taps:
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tap.module.parameters())
    after = list(student.get_submodule(row.after).parameters())
    assert after
    assert not got & {id(parameter) for parameter in after}
    assert all(parameter.grad is not None for parameter in distiller.parameters())
    row.loss(twin, row.images)
    assert list(student.state_dict()) == list(twin.state_dict())
    assert not all(torch.equal(old, new) for old, new in zip(before, student.parameters(), strict=True))


@pytest.mark.parametrize("name", ZOO)
def test_attaching_alone_leaves_no_trace(name: str) -> None:
    row = ZOO[name]
    student = _built(row)
    before, tensors = trace(student), [tensor.clone() for tensor in tensors_of(student)]
    _attached(row, student).detach()
    assert trace(student) == before
    assert equal(tensors_of(student), tensors)


@pytest.mark.parametrize("name", ZOO)
def test_a_student_that_was_attached_to_is_like_one_that_never_was(name: str) -> None:
    row = ZOO[name]
    student, twin = _built(row), _built(row)
    tensors, types = tensors_of(student), [type(module) for module in student.modules()]
    state = torch.get_rng_state()
    distiller = _attached(row, student)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(one is other for one, other in zip(tensors_of(student), tensors, strict=True))
    assert equal(tensors, tensors_of(twin))
    with distiller:
        loss = row.loss(student, row.images)
        distiller.loss(row.images)
        attached = hooks(student)
    assert hooks(student) == attached - len(distiller.taps)
    assert [type(module) for module in student.modules()] == types
    drawn = torch.get_rng_state()
    torch.set_rng_state(state)
    expected = row.loss(twin, row.images)
    assert torch.equal(drawn, torch.get_rng_state())
    assert torch.equal(loss, expected)
    assert trace(student) == trace(twin)
    assert equal(tensors_of(student), tensors_of(twin))
    given = _further(row, student)
    torch.set_rng_state(drawn)
    assert equal(given, _further(row, twin))
    assert equal(tensors_of(student), tensors_of(twin))


def _further(row: Row, student: nn.Module) -> list[Tensor]:
    """Return a loss in training mode, and what comes out in eval mode."""
    loss = row.loss(student, row.images)
    with torch.no_grad():
        return [loss, *tensors_in(student.eval()(row.images))]
