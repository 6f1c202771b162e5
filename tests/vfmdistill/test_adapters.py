from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vfmdistill import ByPathAdapter, CaptureError, InputError, StudentAdapter, Tap, UnknownNameError, adapters
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


TAP = Tap("layer", nn.Identity())
READER = ByPathAdapter(["layer"])


def test_by_path_finds_nested_modules_and_the_student_itself() -> None:
    student = nn.Sequential(nn.Sequential(nn.Identity(), nn.ReLU()))
    taps = ByPathAdapter(["0.1", ""]).taps(student)
    assert [(tap.path, tap.module) for tap in taps] == [("0.1", student[0][1]), ("", student)]


def test_by_path_names_the_nearest_paths() -> None:
    student = nn.ModuleDict({"encoder": nn.ModuleDict({"aifi": nn.Identity()}), "head": nn.Identity()})
    with pytest.raises(UnknownNameError, match=r"unknown tap 'encoder.aify'; nearest: encoder\.aifi, encoder"):
        ByPathAdapter(["encoder.aify"]).taps(student)


@pytest.mark.parametrize("paths", [[], ["head", "head"]])
def test_by_path_wants_different_paths(paths: list[str]) -> None:
    with pytest.raises(InputError, match="different module paths"):
        ByPathAdapter(paths).taps(nn.ModuleDict({"head": nn.Identity()}))


def test_by_path_reads_maps_and_tokens_height_first() -> None:
    images = torch.rand(2, 3, 64, 96)
    feature_map = torch.rand(2, 5, 4, 6)
    assert READER.feature_map(TAP, feature_map, images) is feature_map
    tokens = feature_map.flatten(2).transpose(1, 2)
    assert torch.equal(READER.feature_map(TAP, tokens, images), feature_map)
    assert READER.feature_map(TAP, torch.rand(2, 5, 5, 7), images).shape == (2, 5, 5, 7)  # padded by one cell
    assert READER.feature_map(TAP, torch.rand(2, 5, 1, 1), images).shape == (2, 5, 1, 1)


@pytest.mark.parametrize(
    "output",
    [
        torch.rand(2, 25, 5),  # 24 patches and a class token
        torch.rand(2, 0, 5),
        torch.rand(2, 4, 6, 5),  # channels last
        torch.rand(2, 5, 6, 4),  # width before height
        torch.rand(2, 5),
        (torch.rand(2, 5, 4, 6),),
        {"map": torch.rand(2, 5, 4, 6)},
    ],
)
def test_by_path_refuses_what_it_cannot_read(output: Any) -> None:
    with pytest.raises(CaptureError, match=r"tap 'layer' \(Identity\) gave .* expected a map .* pass an adapter"):
        READER.feature_map(TAP, output, torch.rand(2, 3, 64, 96))


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


@pytest.mark.parametrize("adapter", [nn.Identity(), object(), ByPathAdapter])
def test_register_refuses_what_is_no_adapter(monkeypatch: pytest.MonkeyPatch, adapter: Any) -> None:
    monkeypatch.setattr(adapters, "_registered", [])
    with pytest.raises(InputError, match=r"expected an object with taps\(student\) and feature_map"):
        register_adapter(nn.Module, adapter)
    assert adapters._registered == []
