"""Side by side, what several teachers see in some images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vfmdistill.errors import InputError
from vfmdistill.teacher import Teacher, TeacherFeatures
from vfmdistill.visualize import pca_maps

CELLS = 32  # along the longer side of an image: fine enough to see an object, small enough for a CPU


def feature_columns(
    images: Sequence[Tensor], teachers: Iterable[tuple[str, Teacher]], grid: int | tuple[int, int] = CELLS
) -> dict[str, list[Tensor]]:
    """Return the columns of a sheet: the images, then the principal components of each teacher's maps of them.

    Teachers are taken one after another, so that an iterator that builds them needs memory for one at a time. The
    colours of a teacher mean the same in all images, and nothing across teachers.

    Args:
        images: each (3, H, W) uint8, as `read_image` returns it; sizes may differ.
        teachers: pairs of a caption and a teacher.
        grid: cells along the longer side of each image, the shorter one following from its shape; or (height, width).

    Returns:
        caption → one picture for each image, for `vfmdistill.visualize.save_sheet`.

    Raises:
        InputError: there is no image, the grid is not as described, or two captions are the same.
    """
    if not images:
        raise InputError("a sheet of features needs at least one image; given none.")
    grids = [grid_for(image, grid) for image in images]
    columns = {"image": [image.float() / 255 for image in images]}
    for caption, teacher in teachers:
        if caption in columns:
            raise InputError(f"a sheet has one column for each caption; {caption!r} came twice. Give them other names.")
        maps = [_map(teacher, image, cells) for image, cells in zip(images, grids, strict=True)]
        columns[caption] = pca_maps(*maps)
        del teacher  # before the next one is built
    return columns


def grid_for(image: Tensor, grid: int | tuple[int, int]) -> tuple[int, int]:
    """Return the (height, width) in cells for an image (3, H, W), of cells that are as nearly square as can be."""
    height, width = image.shape[-2:]
    cells = (grid, grid) if isinstance(grid, int) else grid
    if len(cells) != 2 or not all(isinstance(count, int) and count > 0 for count in cells):
        raise InputError(f"grid={grid!r} is no grid; expected cells along the longer side, or (height, width), from 1.")
    if not isinstance(grid, int):
        return grid
    return max(1, round(grid * height / max(height, width))), max(1, round(grid * width / max(height, width)))


def _map(teacher: Teacher, image: Tensor, grid: tuple[int, int]) -> Tensor:
    device = teacher.device or torch.device("cpu")
    features: TeacherFeatures = teacher(image[None].to(device), grid=grid, input_range="uint8")
    return features.map[0].cpu()
