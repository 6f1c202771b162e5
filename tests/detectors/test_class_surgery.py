from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from detectors.class_surgery import EMBEDDING, ClassMatch, has_class_rows, match_classes, move_rows
from vfmdistill.errors import WeightsError


@pytest.mark.parametrize(
    ("ours", "theirs", "rows"),
    [
        (["a", "b", "c"], ["a", "b", "c"], (0, 1, 2)),
        (["c", "a", "b"], ["a", "b", "c"], (2, 0, 1)),
        (["b", "x"], ["a", "b", "c"], (1, None)),
        (["x", "y"], ["a"], (None, None)),
        ([" Cat", "DOG"], ["dog", "cat"], (1, 0)),  # but for case and space
        (["cat", "Cat"], ["Cat"], (None, 0)),  # exact names first, and no row twice
        (["CAT", "Cat"], ["cat"], (None, None)),  # which one is meant?
        (["cat"], ["Cat", "CAT"], (None,)),
        (["a", "b"], ["a", "a", "b"], (None, 2)),
        (["couch", "motorcycle"], ["sofa", "motorbike"], (None, None)),  # synonyms are not guessed
    ],
)
def test_rows_by_name(ours: list[str], theirs: list[str], rows: tuple[int | None, ...]) -> None:
    match = match_classes(len(ours), ours, len(theirs), theirs)
    assert match.rows == rows
    assert match.kept == tuple(name for name, row in zip(ours, rows, strict=True) if row is not None)
    assert match.new == tuple(name for name, row in zip(ours, rows, strict=True) if row is None)
    assert match.dropped == tuple(name for row, name in enumerate(theirs) if row not in rows)
    assert match.in_order == (rows == tuple(range(len(theirs))))


@pytest.mark.parametrize(("ours", "theirs"), [(None, ["a", "b"]), (["a", "b"], None), (None, None)])
def test_unknown_names_leave_the_order(ours: list[str] | None, theirs: list[str] | None) -> None:
    match = match_classes(2, ours, 2, theirs)
    assert match.in_order
    assert match.kept == tuple(ours or theirs or ())


@pytest.mark.parametrize(
    ("ours", "theirs", "advice"),
    [
        (None, None, r"class_names=\[\.\.\.\]\) and the checkpoint's \(give source_class_names"),
        (["a", "b"], None, r"unknown: the checkpoint's \(give source_class_names"),
        (None, ["a", "b", "c"], r"unknown: the detector's \(build it with class_names=\[\.\.\.\]\)\. To take the rows"),
    ],
)
def test_unknown_names_and_another_count(ours: Sequence[str] | None, theirs: Sequence[str] | None, advice: str) -> None:
    with pytest.raises(WeightsError, match=f"knows 3 classes, the detector 2.*{advice}.*num_classes=3"):
        match_classes(2, ours, 3, theirs)


def test_too_few_names() -> None:
    with pytest.raises(WeightsError, match="2 source_class_names for a checkpoint with 3 classes"):
        match_classes(1, ["a"], 3, ["a", "b"])


@pytest.mark.parametrize(
    ("key", "yes"),
    [
        ("decoder.selection.score_head.weight", True),
        ("decoder.stages.11.score_head.bias", True),
        ("decoder.denoising_embedding.weight", True),
        ("decoder.selection.box_head.layers.2.bias", False),
        ("decoder.stages.0.layer.norm1.weight", False),
    ],
)
def test_which_tensors_have_class_rows(key: str, yes: bool) -> None:
    assert has_class_rows(key) == yes


BY_NAME = ClassMatch(rows=(2, None, 0), source_count=4)


@pytest.mark.parametrize("shape", [(4, 6), (4,)])
def test_moving_rows(shape: tuple[int, ...]) -> None:
    given, ours = torch.randn(shape, dtype=torch.float64), torch.randn(3, *shape[1:])
    moved = move_rows("decoder.stages.0.score_head.weight", given, ours, BY_NAME)
    assert torch.equal(moved, torch.stack([given[2].float(), ours[1], given[0].float()]))
    assert moved.dtype == ours.dtype


def test_the_padding_row_stays_last() -> None:
    given, ours = torch.randn(5, 6), torch.randn(4, 6)
    moved = move_rows(EMBEDDING, given, ours, BY_NAME)
    assert torch.equal(moved, torch.stack([given[2], ours[1], given[0], given[4]]))


def test_rows_of_only_new_classes() -> None:
    ours = torch.randn(2, 6)
    match = match_classes(2, ["x", "y"], 1, ["a"])
    assert torch.equal(move_rows("decoder.selection.score_head.weight", torch.randn(1, 6), ours, match), ours)


def test_other_tensors_come_back_as_given() -> None:
    given = torch.randn(4, 6)
    assert move_rows("decoder.position_head.layers.0.weight", given, torch.randn(4, 6), BY_NAME) is given
    assert move_rows("decoder.selection.score_head.weight", given, torch.randn(3, 7), BY_NAME) is given


def test_a_head_of_another_size_is_an_error() -> None:
    with pytest.raises(WeightsError, match=r"scores 4 classes, but the tensor for .*stages\.1.* has 3 rows"):
        move_rows("decoder.stages.1.score_head.bias", torch.randn(3), torch.randn(3), BY_NAME)


def test_the_match_in_words() -> None:
    assert str(match_classes(2, None, 2, None)) == "all 2 rows are kept in their order"
    match = match_classes(2, ["dog", "x"], 3, ["cat", "dog", "cow"])
    assert str(match) == "matched by name; 1 kept: dog; 1 new: x; 2 dropped: cat, cow"
