from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from torch import Tensor, nn

from vfmdistill import ByPathAdapter, InputError, StudentAdapter, Tap, adapters
from vfmdistill.adapters import ForegroundAdapter, find_adapter, register_adapter


class OwnAdapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 8, 8)

    def forward(self, images: Tensor) -> Tensor:
        mapped: Tensor = self.body(images)
        return mapped

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        return [Tap("body", self.body)]

    def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
        return output  # type: ignore[no-any-return]


READER = ByPathAdapter(["layer"])


def test_protocol_is_kept_without_inheritance() -> None:
    assert isinstance(READER, StudentAdapter)
    assert isinstance(OwnAdapter(), StudentAdapter)


def test_an_adapter_weighs_the_cells_only_if_it_has_the_third_method() -> None:
    class Weighing(OwnAdapter):
        def foreground(self, tap: Tap, feature_map: Tensor, images: Tensor) -> Tensor | None:
            return None

    assert isinstance(Weighing(), StudentAdapter)
    assert isinstance(Weighing(), ForegroundAdapter)
    assert not isinstance(OwnAdapter(), ForegroundAdapter)
    assert not isinstance(READER, ForegroundAdapter)


def test_the_student_itself_comes_before_the_latest_registration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_registered", [])
    student = nn.Sequential(nn.Conv2d(3, 4, 8, 8))
    own = OwnAdapter()
    assert find_adapter(student) is None
    first, second = ByPathAdapter(["0"]), ByPathAdapter(["0"])
    register_adapter(nn.Module, first)
    assert find_adapter(student) is first
    register_adapter(lambda candidate: len(list(candidate.children())) == 1, second)
    assert find_adapter(student) is second
    assert find_adapter(nn.Linear(2, 2)) is first
    assert find_adapter(own) is own


def test_the_table_is_read_from_the_top_and_an_adapter_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class First(ByPathAdapter):
        def __init__(self) -> None:
            super().__init__(["0"])

        def matches(self, student: nn.Module) -> bool:
            asked.append(type(self).__name__)
            return isinstance(student, nn.Sequential)

    class Second(First):
        def matches(self, student: nn.Module) -> bool:
            return super().matches(student) or isinstance(student, nn.Linear)

    rooms = {"first": SimpleNamespace(First=First), "second": SimpleNamespace(Second=Second)}
    monkeypatch.setattr(adapters, "import_module", rooms.__getitem__)
    rows = (("torch.nn.modules", "first:First"), ("torch", "second:Second"), ("tor", "third:Third"))
    monkeypatch.setattr(adapters, "BUILT_IN", rows)
    assert isinstance(find_adapter(nn.Sequential()), First)
    assert isinstance(find_adapter(nn.Linear(2, 2)), Second)
    assert find_adapter(nn.ReLU()) is None  # a package's name is compared as a whole: "tor" is not asked
    assert asked == ["First", "First", "Second", "First", "Second"]
    monkeypatch.setattr(adapters, "_registered", [])
    registered = ByPathAdapter(["0"])
    register_adapter(nn.Sequential, registered)
    assert find_adapter(nn.Sequential()) is registered


@pytest.mark.parametrize("target", [target for _, target in adapters.BUILT_IN])
def test_every_built_in_adapter_exists(target: str) -> None:
    module, _, name = target.partition(":")
    adapter = getattr(import_module(module), name)()
    assert isinstance(adapter, StudentAdapter)
    assert adapter.matches(nn.Linear(2, 2)) is False


def test_nothing_is_imported_to_look_for_an_adapter() -> None:
    program = (
        "import sys; from torch import nn; from vfmdistill.adapters import BUILT_IN, find_adapter; "
        "from importlib import import_module; [import_module(target.split(':')[0]) for _, target in BUILT_IN]; "
        "assert find_adapter(nn.Linear(2, 2)) is None; "
        "print([name for name in sys.modules if name in "
        "('timm', 'torchvision', 'transformers', 'ultralytics', 'segmentation_models_pytorch')])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize("adapter", [nn.Identity(), object(), ByPathAdapter])
def test_register_refuses_what_is_no_adapter(monkeypatch: pytest.MonkeyPatch, adapter: Any) -> None:
    monkeypatch.setattr(adapters, "_registered", [])
    with pytest.raises(InputError, match=r"expected an object with taps\(student\) and feature_map"):
        register_adapter(nn.Module, adapter)
    assert adapters._registered == []
