"""Columns of a sheet: right grids, right pixels, one teacher at a time."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from vfmdistill.errors import InputError
from vfmdistill.feature_sheet import feature_columns, grid_for
from vfmdistill.teacher import Teacher
from vfmdistill.teachers.catalog import TeacherSpec
from vfmdistill.visualize import pca_maps

SPEC = TeacherSpec(name="tiny", family="tiny", backend="module", model_id="tiny", patch_size=4, embed_dim=8)


def tiny() -> Teacher:
    return Teacher(nn.Conv2d(3, 8, 4, 4), spec=SPEC)


def image(height: int = 30, width: int = 40) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("size", "grid", "cells"),
    [
        ((30, 40), 32, (24, 32)),
        ((504, 378), 32, (32, 24)),
        ((100, 100), 7, (7, 7)),
        ((3, 1000), 20, (1, 20)),
        ((30, 40), (5, 9), (5, 9)),
    ],
)
def test_cells_are_as_nearly_square_as_can_be(
    size: tuple[int, int], grid: int | tuple[int, int], cells: tuple[int, int]
) -> None:
    assert grid_for(image(*size), grid) == cells


def test_a_column_is_the_teachers_maps_in_one_basis() -> None:
    images, teacher = [image(), image(50, 20)], tiny()
    columns = feature_columns(images, [("tiny", teacher)], grid=8)
    maps = [teacher(given[None] / 255, grid=cells).map for given, cells in zip(images, [(6, 8), (8, 3)], strict=True)]
    assert list(columns) == ["image", "tiny"]
    for drawn, expected in zip(columns["tiny"], pca_maps(*maps), strict=True):
        assert drawn.shape == expected.shape
        assert (drawn.int() - expected.int()).abs().max() <= 1
    torch.testing.assert_close(columns["image"][1] * 255, images[1].float())


def test_one_teacher_at_a_time() -> None:
    alive: list[weakref.ref[Teacher]] = []

    def teachers() -> Iterator[tuple[str, Teacher]]:
        for caption in "ab":
            gc.collect()
            assert not any(reference() for reference in alive)
            teacher = tiny()
            alive.append(weakref.ref(teacher))
            yield caption, teacher
            del teacher

    assert list(feature_columns([image()], teachers(), grid=4)) == ["image", "a", "b"]


def test_sheets_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="at least one image"):
        feature_columns([], [("tiny", tiny())])
    with pytest.raises(InputError, match="'tiny' came twice"):
        feature_columns([image()], [("tiny", tiny()), ("tiny", tiny())], grid=4)
    for grid in (0, -3, (4, 0), (1, 2, 3)):
        with pytest.raises(InputError, match="is no grid"):
            feature_columns([image()], [], grid)  # type: ignore[arg-type]
