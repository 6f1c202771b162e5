from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from support.students import IMAGES, Classifier, Wide, hooks, same_state, step
from torch import nn
from torch.optim.swa_utils import AveragedModel

from vfmdistill import attach


def _pickled(student: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(student))
    return copied


def _saved(student: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(student, file)
    file.seek(0)
    copied: nn.Module = torch.load(file, weights_only=False)
    return copied


COPIES: list[Callable[[nn.Module], nn.Module]] = [copy.deepcopy, AveragedModel, _pickled, _saved]


@pytest.mark.parametrize("make", COPIES)
def test_copies_carry_no_hook_and_feed_no_one(make: Callable[[nn.Module], nn.Module], student: Classifier) -> None:
    twin = copy.deepcopy(student)
    with attach(student, Wide(), tap=["stem", "body"]) as distiller:
        copied = make(student)
        assert same_state(copied.module if isinstance(copied, AveragedModel) else copied, twin)
        student(IMAGES)
        held = [capture._output for capture in distiller._student_maps._captures]
        copied = make(student)
        if make in (_pickled, _saved):
            copied(IMAGES)  # what was unpickled loses its idle hook with the first forward
        assert hooks(copied) == 0
        assert hooks(student) == 2
        copied(IMAGES)
        assert [capture._output for capture in distiller._student_maps._captures] == held
        assert distiller.loss(IMAGES).requires_grad


def test_hooks_of_the_student_s_own_are_copied(student: Classifier) -> None:
    calls: list[str] = []
    student.body.register_forward_hook(lambda module, args, output: calls.append("before"))
    with attach(student, Wide(), tap="body"):
        student.body.register_forward_hook(lambda module, args, output: calls.append("after"))
        copied = copy.deepcopy(student)
    calls.clear()
    copied(IMAGES)
    assert calls == ["before", "after"]
    assert hooks(copied) == hooks(student) == 2


def test_state_dict_hooks_go_on_and_keys_stay(student: Classifier) -> None:
    calls: list[str] = []
    student.body.register_state_dict_post_hook(lambda module, state, prefix, metadata: calls.append("saved"))
    student.body.register_load_state_dict_post_hook(lambda module, keys: calls.append("loaded"))
    keys = list(student.state_dict())
    with attach(student, Wide(), tap="body") as distiller:
        step(student, distiller)
        calls.clear()
        state = student.state_dict()
        assert list(state) == keys
        student.load_state_dict(state)
        assert calls == ["saved", "loaded"]
