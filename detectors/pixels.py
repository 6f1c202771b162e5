"""From whatever holds a picture to its pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors

from detectors.data.images import read_image, to_rgb
from detectors.data.transforms import eval_transform
from vfmdistill.errors import InputError

Picture: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor
"""A file, a Pillow image, an array (H, W, 3) or (H, W), or a tensor (3, H, W) or (1, H, W)."""


def is_one_picture(value: object) -> bool:
    """Tell a single picture from a batch, a sequence or an iterable of them."""
    if isinstance(value, (np.ndarray, Tensor)):
        return value.ndim < 4
    return isinstance(value, (str, os.PathLike, Image.Image))


def to_pixels(picture: Picture) -> Tensor:
    """Return a picture as an RGB tensor (3, H, W), uint8, on the CPU; a floating-point tensor stays floating point.

    Grey becomes RGB, an alpha channel is left out. Files and Pillow images are turned upright, as their EXIF
    orientation says.

    Args:
        picture: a path; a Pillow image with 8 bits a channel; an array of uint8, RGB (H, W, 3) or grey (H, W) or
            (H, W, 1); or a tensor (3, H, W) or (1, H, W), uint8 or floating point in [0, 1].

    Raises:
        InputError: the file cannot be read, or shape, dtype or range are others.
    """
    if isinstance(picture, (str, os.PathLike)):
        return _from_array(np.asarray(read_image(Path(picture), upright=True)))
    if isinstance(picture, Image.Image):
        return _from_array(np.asarray(_decoded(picture)))
    if isinstance(picture, np.ndarray):
        return _from_array(picture)
    if isinstance(picture, Tensor):
        return _from_tensor(picture)
    raise InputError(
        f"a picture is a path, a Pillow image, an array (H, W, 3) or a tensor (3, H, W); got {type(picture).__name__}."
    )


def to_input(picture: Picture, input_size: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Return a picture as a detector takes it, and its (height, width) before.

    Args:
        picture: see `to_pixels`.
        input_size: (height, width) to resize to, as evaluation does: without keeping the aspect ratio.

    Returns:
        RGB in [0, 1], float32, shape (3, h, w); and the size of the picture as it was.

    Raises:
        InputError: see `to_pixels`.
    """
    pixels = to_pixels(picture)
    size = (pixels.shape[1], pixels.shape[2])
    # The transform of evaluation itself, which takes targets too.
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size)
    image, _ = eval_transform(input_size)(tv_tensors.Image(pixels), {"boxes": boxes})
    return image.as_subclass(Tensor), size


def _decoded(image: Image.Image) -> Image.Image:
    try:
        return to_rgb(image, upright=True)
    except InputError:
        raise
    # The file behind an image is decoded only now; decoders raise many kinds of errors for broken ones.
    except Exception as error:
        raise InputError(f"the Pillow image cannot be decoded: {error}") from error


def _from_array(array: NDArray[Any]) -> Tensor:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3) or 0 in array.shape:
        raise InputError(f"an array holds a picture as (H, W, 3), RGB, or (H, W), grey; got the shape {array.shape}.")
    if array.dtype != np.uint8:
        raise InputError(
            f"an array holds a picture as uint8, 0 to 255; got {array.dtype}. Convert it, or give a tensor (3, H, W) "
            "of floating point in [0, 1]."
        )
    # A copy in any case: arrays may be read-only or have negative strides, neither of which tensors can.
    return torch.from_numpy(array.repeat(3, axis=2) if array.shape[2] == 1 else array.copy()).movedim(2, 0)


def _from_tensor(tensor: Tensor) -> Tensor:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3) or not tensor.numel():
        raise InputError(
            f"a tensor holds a picture as (3, H, W), RGB, or (1, H, W), grey; got the shape {tuple(tensor.shape)}."
        )
    pixels = tensor.detach().as_subclass(Tensor).cpu().expand(3, -1, -1)
    if pixels.dtype == torch.uint8:
        return pixels
    if not pixels.is_floating_point():
        raise InputError(f"a tensor holds a picture as uint8 or floating point, got {tensor.dtype}.")
    low, high = (float(value) for value in pixels.aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"a floating-point tensor holds a picture in [0, 1], got values from {low:g} to {high:g}; "
            "do not normalise it, and divide by 255 what goes up to 255."
        )
    return pixels.float()
