from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vfmdistill import ByPathAdapter, CaptureError, InputError, Tap, UnknownNameError

TAP = Tap("layer", nn.Identity())
READER = ByPathAdapter(["layer"])
IMAGES = torch.rand(2, 3, 64, 96)


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
    feature_map = torch.rand(2, 5, 4, 6)
    assert READER.feature_map(TAP, feature_map, IMAGES) is feature_map
    tokens = feature_map.flatten(2).transpose(1, 2)
    assert torch.equal(READER.feature_map(TAP, tokens, IMAGES), feature_map)
    assert READER.feature_map(TAP, torch.rand(2, 5, 5, 7), IMAGES).shape == (2, 5, 5, 7)  # padded by one cell
    assert READER.feature_map(TAP, torch.rand(2, 5, 1, 1), IMAGES).shape == (2, 5, 1, 1)


def test_by_path_reads_channels_last_where_no_map_has_them_first() -> None:
    feature_map = torch.rand(2, 5, 4, 6)
    assert torch.equal(READER.feature_map(TAP, feature_map.permute(0, 2, 3, 1), IMAGES), feature_map)
    both = torch.rand(2, 8, 8, 8)
    assert READER.feature_map(TAP, both, torch.rand(2, 3, 64, 64)) is both


@pytest.mark.parametrize("prefix", [1, 2, 5, 8])
def test_by_path_drops_prefix_tokens(prefix: int) -> None:
    feature_map = torch.rand(2, 5, 4, 6)
    tokens = torch.cat([torch.rand(2, prefix, 5), feature_map.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(READER.feature_map(TAP, tokens, IMAGES), feature_map)


FINE, DEEP, DEEPER, POOLED = (torch.rand(2, 5, *grid) for grid in ((8, 12), (4, 6), (2, 3), (1, 2)))
TOKENS = torch.rand(2, 25, 5)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ((DEEP,), DEEP),
        ([FINE, DEEP], DEEP),
        ({"p3": FINE, "p5": DEEPER, "p6": POOLED}, DEEPER),
        ({"high": DEEP.permute(0, 2, 3, 1), "low": FINE}, DEEP),
        ({"levels": [FINE, {"last": DEEP}], "shape": (4, 6), "none": None}, DEEP),
        ((TOKENS, torch.rand(2, 3, 25, 25)), TOKENS[:, 1:].transpose(1, 2).reshape(2, 5, 4, 6)),
        ({"last_hidden_state": DEEPER, "pooler_output": torch.rand(2, 5, 1, 1)}, DEEPER),
        ({"last_hidden_state": DEEP, "hidden_states": (FINE, DEEP)}, DEEP),  # one tensor in two places
        ((POOLED,), POOLED),  # the only one: whatever its stride
        ((torch.rand(1, 5, 4, 6), DEEP), DEEP),  # a map of another batch is none
    ],
)
def test_by_path_takes_the_deepest_map_of_a_container(output: Any, expected: Tensor) -> None:
    assert torch.equal(READER.feature_map(TAP, output, IMAGES), expected)


def test_by_path_leaves_it_to_the_distiller_to_say_that_the_batch_is_another() -> None:
    other = torch.rand(3, 5, 4, 6)
    assert READER.feature_map(TAP, {"map": other}, IMAGES) is other


@pytest.mark.parametrize(
    ("output", "named"),
    [
        ((DEEP, DEEP.clone()), r"a tuple of \[0\] \(2, 5, 4, 6\), \[1\] \(2, 5, 4, 6\), of which \[0\] or \[1\] could"),
        ({"map": FINE, "queries": torch.rand(2, 24, 5)}, r"a dict of .*, of which \['queries'\] could be meant"),
        (
            {"a": [POOLED, POOLED.clone()]},
            r"a dict of \['a'\]\[0\] .* of which \['a'\]\[0\] or \['a'\]\[1\] could be meant",
        ),
        ({"logits": torch.rand(2, 5)}, r"a dict of \['logits'\] \(2, 5\) for images"),
        ((), "a tuple of nothing for images"),
        (None, "a NoneType of nothing for images"),
    ],
)
def test_by_path_lists_what_could_be_meant(output: Any, named: str) -> None:
    with pytest.raises(
        CaptureError, match=rf"tap 'layer' \(Identity\) gave {named}.* expected a map .* pass an adapter"
    ):
        READER.feature_map(TAP, output, IMAGES)


@pytest.mark.parametrize(
    "output",
    [
        torch.rand(2, 9 + 24, 5),  # more prefix tokens than any network has
        torch.rand(2, 0, 5),
        torch.rand(2, 5, 6, 4),  # width before height
        torch.rand(2, 5),
    ],
)
def test_by_path_refuses_what_it_cannot_read(output: Any) -> None:
    with pytest.raises(CaptureError, match=r"tap 'layer' \(Identity\) gave a .* expected a map .* pass an adapter"):
        READER.feature_map(TAP, output, IMAGES)


def test_by_path_refuses_tokens_that_two_grids_fit() -> None:
    # 60 pixels are cut into 4 × 4 cells of 15 behind one token, and into 3 × 3 of 20 behind eight
    with pytest.raises(CaptureError, match=r"a tensor of shape \(2, 17, 5\)"):
        READER.feature_map(TAP, torch.rand(2, 17, 5), torch.rand(2, 3, 60, 60))
