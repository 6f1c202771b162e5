from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from support.students import hooks
from torch import nn
from torch.utils.checkpoint import checkpoint

from vfmdistill.hooks import ForwardHook

ONES = torch.ones(2, 3)


@pytest.mark.parametrize("before", [True, False])
def test_follows_every_forward_until_it_is_removed(before: bool) -> None:
    module, seen = nn.Linear(3, 1), []
    hook = ForwardHook(module, lambda *values: seen.append(values), before=before)
    output = module(ONES)
    ((args, *rest),) = seen
    assert args == (ONES,)
    assert rest == ([] if before else [output])
    module.forward(ONES)
    assert len(seen) == 1
    hook.remove()
    hook.remove()
    module(ONES)
    assert len(seen) == 1
    assert hooks(module) == 0


@pytest.mark.parametrize("before", [True, False])
def test_copies_have_no_hook(before: bool) -> None:
    module, seen = nn.Sequential(nn.Linear(3, 1)), []
    kept = module[0].register_forward_hook(lambda *values: None)
    hook = ForwardHook(module[0], seen.append, before=before)
    copied = copy.deepcopy(module)
    assert (hooks(copied), hooks(module)) == (1, 2)
    kept.remove()
    pickled = pickle.loads(pickle.dumps(module))
    for other in (copied, pickled):
        other(ONES)
    assert seen == []
    assert hooks(pickled) == 0
    hook.remove()


def test_a_hook_that_is_copied_alone_is_idle() -> None:
    module, seen = nn.Linear(3, 1), []
    hook = ForwardHook(module, seen.append)
    for idle in (copy.deepcopy(hook), pickle.loads(pickle.dumps(hook))):
        other = nn.Linear(3, 1)
        other.register_forward_hook(idle)
        other(ONES)
    module.register_forward_hook(copy.deepcopy(hook))
    assert seen == []


def test_a_shallow_copy_is_another_module() -> None:
    module, seen = nn.Linear(3, 1), []
    ForwardHook(module, lambda *values: seen.append(1))
    copy.copy(module)(ONES)
    assert seen == []


def test_what_the_backward_pass_computes_again_is_no_forward() -> None:
    module, seen = nn.Linear(3, 3), []
    ForwardHook(module, lambda *values: seen.append(1))
    runs: list[int] = []

    def twice(values: Any) -> Any:
        runs.append(1)
        return module(values).relu()

    checkpoint(twice, ONES, use_reentrant=False).sum().backward()
    assert len(runs) == 2
    assert len(seen) == 1


def test_a_removed_hook_keeps_nothing_alive() -> None:
    class Holder:
        def __init__(self, module: nn.Module) -> None:
            self.hook = ForwardHook(module, self.react)

        def react(self, *values: Any) -> None:
            pass

    module = nn.Linear(3, 1)
    holder = Holder(module)
    gone = [weakref.ref(module), weakref.ref(holder)]
    gc.disable()
    try:
        holder.hook.remove()
        del module, holder
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()
