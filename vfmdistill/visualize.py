"""Pictures of feature maps: three principal components as red, green and blue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vfmdistill.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image as PilImage
    from PIL.ImageDraw import ImageDraw as PilDraw

_LOW, _HIGH = 0.02, 0.98  # quantiles that become black and white; a few outlying cells do not darken the rest
_GAP = 8  # pixels between the pictures of a sheet
_CAPTION = 20  # pixels above each column


class PcaBasis(NamedTuple):
    """Three directions in feature space and the range of colours along them.

    Attributes:
        mean: (C,), the point that becomes the origin.
        axes: (C, 3), orthonormal, the first with the largest variance.
        low, high: (3,), coordinates that become 0 and 255.
    """

    mean: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor


def fit_pca(*maps: Tensor) -> PcaBasis:
    """Fit one basis to all cells of some maps.

    Every cell is scaled to length 1 first, as in the cosine objective, so that only the direction of its vector counts
    and a projected student map can be shown in its teacher's basis. The sign of an axis is chosen so that its largest
    component is positive: the same maps always get the same colours.

    Args:
        maps: each (C, h, w) or (N, C, h, w), all with the same C of at least 3.

    Raises:
        InputError: no map, another shape, different widths, or numbers that are not finite.
    """
    cells = torch.cat([_cells(image) for image in _images(maps)])
    if not cells.isfinite().all():
        raise InputError("a map holds inf or NaN, which have no colour; run the teacher with dtype=torch.float32.")
    mean = cells.mean(0)
    centred = cells - mean
    # The eigenvectors of the covariance, by way of the smaller of the two Gram matrices.
    if centred.shape[0] >= centred.shape[1]:
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -3:].flip(-1)
    else:
        axes = torch.linalg.svd(centred, full_matrices=False).Vh[:3].T
        axes = F.pad(axes, (0, 3 - axes.shape[1]))
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * torch.where(largest < 0, -1.0, 1.0)
    coordinates = centred @ axes
    low, high = torch.quantile(coordinates, torch.tensor([_LOW, _HIGH]), dim=0)
    return PcaBasis(mean, axes, low, high)


def pca_maps(*maps: Tensor, basis: PcaBasis | None = None) -> list[Tensor]:
    """Colour feature maps by their three principal components.

    Args:
        maps: each (C, h, w) or (N, C, h, w), from one source, so that a colour means the same in all of them.
        basis: the basis to use, for example a teacher's for the projected map of its student; by default fitted here.

    Returns:
        One uint8 image (h, w, 3) on the CPU for each map; a batch gives N of them.

    Raises:
        InputError: no map, another shape, or another width than that of the others or of the basis.
    """
    images = _images(maps)
    basis = basis or fit_pca(*images)
    if images[0].shape[0] != len(basis.mean):
        raise InputError(
            f"the maps have {images[0].shape[0]} channels, the basis {len(basis.mean)}. "
            "Project the maps to the teacher's width, or leave out basis= to fit one."
        )
    pictures = []
    for image in images:
        coordinates = (_cells(image) - basis.mean) @ basis.axes
        unit = (coordinates - basis.low) / (basis.high - basis.low).clamp_min(1e-12)
        pictures.append((unit.clamp(0, 1) * 255).round().to(torch.uint8).reshape(*image.shape[-2:], 3))
    return pictures


def save_sheet(path: str | Path, columns: Mapping[str, Sequence[Tensor]], *, width: int = 240) -> Path:
    """Write a PNG in which each image has a row and each source a captioned column.

    For example ``{"image": images, "teacher": pca_maps(...), "before": pca_maps(...), "after": pca_maps(...)}``.

    Args:
        path: where to write; missing folders are made.
        columns: caption → one picture for each row, either a photograph (3, H, W) of floats in [0, 1], or a uint8
            picture (h, w, 3) as `pca_maps` returns it, whose cells are drawn as squares. Of a caption that is wider
            than its column the middle is left out.
        width: of a column in pixels. The height of a row follows from the first column's picture.

    Returns:
        The path.

    Raises:
        InputError: no columns, columns of different length, or a picture of another kind.
    """
    from PIL import Image, ImageDraw

    for picture in (picture for pictures in columns.values() for picture in pictures):
        if not (
            _is_photograph(picture) or (picture.dtype == torch.uint8 and picture.ndim == 3 and picture.shape[2] == 3)
        ):
            raise InputError(
                f"a sheet takes photographs (3, H, W) of floats in [0, 1] and uint8 pictures (h, w, 3); "
                f"given {tuple(picture.shape)} of {picture.dtype}."
            )
    lengths = {len(pictures) for pictures in columns.values()}
    if len(lengths) != 1 or 0 in lengths:
        counts = {caption: len(pictures) for caption, pictures in columns.items()}
        raise InputError(f"a sheet needs columns of equal length, at least 1; given {counts}.")
    rows = list(zip(*columns.values(), strict=True))
    heights = [_height(row[0], width) for row in rows]
    size = (len(columns) * (width + _GAP) + _GAP, _CAPTION + sum(heights) + _GAP * (len(rows) + 1))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(columns):
        draw.text((_GAP + column * (width + _GAP), _GAP), _shortened(caption, width, draw), fill="black")
    top = _CAPTION + _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(_to_pil(picture, (width, height)), (_GAP + column * (width + _GAP), top))
        top += height + _GAP
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, format="PNG")
    return path


def _images(maps: Sequence[Tensor]) -> list[Tensor]:
    """Split batches into single maps (C, h, w) and check that they belong together."""
    images = [image for batch in maps for image in (batch if batch.ndim == 4 else [batch])]
    shapes = [tuple(image.shape) for image in images]
    if not images or any(len(shape) != 3 or 0 in shape for shape in shapes) or len({s[0] for s in shapes}) != 1:
        raise InputError(f"expected maps (C, h, w) or (N, C, h, w) of one width C; given {shapes or 'none'}.")
    if shapes[0][0] < 3:
        raise InputError(f"three colours need maps of at least 3 channels; given {shapes[0][0]}.")
    return images


def _cells(image: Tensor) -> Tensor:
    """(C, h, w) → (h·w, C) on the CPU, each of length 1."""
    return F.normalize(image.detach().float().cpu().flatten(1).T, dim=1)


def _is_photograph(picture: Tensor) -> bool:
    return picture.is_floating_point() and picture.ndim == 3 and picture.shape[0] == 3


def _height(picture: Tensor, width: int) -> int:
    height_of, width_of = picture.shape[1:] if _is_photograph(picture) else picture.shape[:2]
    return max(1, round(width * height_of / width_of))


def _shortened(caption: str, width: int, draw: PilDraw) -> str:
    """Leave out the middle of a caption that is wider than its column; names differ at their ends."""
    kept = caption
    for removed in range(1, len(caption)):
        if draw.textlength(kept) <= width:
            break
        left = (len(caption) - removed + 1) // 2
        kept = f"{caption[:left]}...{caption[left + removed :]}"
    return kept


def _to_pil(picture: Tensor, size: tuple[int, int]) -> PilImage:
    from PIL import Image

    if _is_photograph(picture):
        pixels = (picture.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1)
        resampling = Image.Resampling.BILINEAR
    else:
        pixels, resampling = picture, Image.Resampling.NEAREST
    return Image.fromarray(pixels.cpu().numpy()).resize(size, resampling)
