from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.students import Classifier, Wide, hooks, same_state, step
from torch import nn

from vfmdistill import Distiller, Teacher, attach


class TroubleError(Exception):
    pass


def _trouble(*values: object) -> None:
    raise TroubleError


def _in_front_of_the_tap(student: Classifier, distiller: Distiller) -> Any:
    return student.stem.register_forward_pre_hook(_trouble)


def _behind_the_tap(student: Classifier, distiller: Distiller) -> Any:
    return student.head.register_forward_pre_hook(_trouble)


def _in_the_tap(student: Classifier, distiller: Distiller) -> Any:
    return student.body[0].register_forward_hook(_trouble)


def _in_the_teacher(student: Classifier, distiller: Distiller) -> Any:
    return distiller.teacher.register_forward_pre_hook(_trouble)


def _in_the_injector(student: Classifier, distiller: Distiller) -> Any:
    return next(iter(distiller.injectors.values())).register_forward_hook(_trouble)


def _in_the_backward(student: Classifier, distiller: Distiller) -> Any:
    return student.body[0].weight.register_hook(_trouble)


@pytest.mark.parametrize(
    "trouble",
    [_in_front_of_the_tap, _behind_the_tap, _in_the_tap, _in_the_teacher, _in_the_injector, _in_the_backward],
)
def test_a_batch_that_fails_is_as_if_it_had_not_been(trouble: Callable[..., Any]) -> None:
    runs = []
    teacher = Teacher(Wide())
    for fails in (True, False):
        torch.manual_seed(0)
        student = Classifier()
        for module in (student.stem[1], student.body[1], student.body[2]):
            module.eval()  # statistics move with every forward, also of a batch that fails
        with attach(student, teacher, tap="body") as distiller:
            optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-2)
            for number in range(3):
                optimizer.zero_grad()
                if number == 1:
                    if fails:
                        handle = trouble(student, distiller)
                        with pytest.raises(TroubleError):
                            step(student, distiller)
                        handle.remove()
                        distiller.discard()
                    continue
                step(student, distiller)
                optimizer.step()
            runs.append((distiller.update(), [p.detach() for p in student.parameters()]))
        assert hooks(student) == 0
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(one, other) for one, other in zip(runs[0][1], runs[1][1], strict=True))


def test_an_exception_in_attach_leaves_nothing(student: Classifier) -> None:
    twin, teacher = copy.deepcopy(student), Wide()

    def fails(student_dim: int, teacher_dim: int) -> nn.Module:
        raise TroubleError

    state = torch.get_rng_state()
    with pytest.raises(TroubleError):
        attach(student, teacher, tap="body", injector=fails)
    assert hooks(student) == 0
    assert same_state(student, twin)
    assert torch.equal(torch.get_rng_state(), state)
