from __future__ import annotations

import pytest
from support.students import Classifier
from torch import distributed, nn

from vfmdistill.adapters import Tap
from vfmdistill.sharding import is_distributed, left_whole, reshard


def test_nothing_is_sharded_where_no_processes_meet(student: Classifier) -> None:
    assert not is_distributed()
    assert left_whole(student, [Tap("body", student.body)]) is None
    reshard(student)


def test_a_tap_that_is_not_sharded_is_whole_as_it_should_be(
    student: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    assert left_whole(student, [Tap("body", student.body), Tap("", student)]) is None


@pytest.mark.parametrize("path", ["body.0", "body", ""])
def test_a_tap_within_a_sharded_module_that_is_whole(
    path: str, student: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sharded(nn.Sequential):
        pass

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.fsdp.FSDPModule", Sharded)
    student.body = Sharded(*student.body)
    student.__class__ = type("ShardedClassifier", (Classifier, Sharded), {})
    assert left_whole(student, [Tap("relu", student.relu), Tap(path, student.get_submodule(path))]) == path
