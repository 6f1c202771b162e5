"""What the images hold that a teacher is given, and how they are brought to what it was trained on."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from vfmdistill.errors import InputError
from vfmdistill.teachers.catalog import IMAGENET_MEAN, IMAGENET_STD, Rgb

NamedRange: TypeAlias = Literal["unit", "imagenet", "uint8"]
InputRange: TypeAlias = NamedRange | tuple[Rgb, Rgb]

_RANGES = 'expected "unit" or "imagenet" (floating point), "uint8" (torch.uint8), or a pair (mean, std) per channel'


def check_input_range(input_range: object) -> None:
    """Raise an InputError unless `Teacher.forward` knows what images of this range hold."""
    if isinstance(input_range, str):
        if input_range not in get_args(NamedRange):
            raise InputError(f"input_range={input_range!r} is not known; {_RANGES}.")
    elif not _is_mean_and_std(input_range):
        raise InputError(f"input_range={input_range!r} is no pair of mean and std > 0 per channel; {_RANGES}.")


def check_holds(images: Tensor, input_range: InputRange, name: str) -> None:
    """Raise an InputError unless the dtype of images is one that this range can be held in.

    Args:
        images: of any shape.
        input_range: what they are said to hold; checked too.
        name: whom the images are for, as the message shall begin.
    """
    check_input_range(input_range)
    as_bytes = images.dtype == torch.uint8
    if as_bytes != (input_range == "uint8") or not (as_bytes or images.is_floating_point()):
        raise InputError(
            f"{name} got images of {images.dtype} with input_range={input_range!r}; {_RANGES}. "
            "Floating-point images in [0, 255] are ((0, 0, 0), (1/255, 1/255, 1/255))."
        )


def normalise(pixels: Tensor, input_range: InputRange, mean: Rgb, std: Rgb) -> Tensor:
    """Return images normalised with a mean and a standard deviation per channel, untouched if they are already.

    Args:
        pixels: (N, 3, H, W), floating point.
        input_range: what they hold.
        mean, std: of the images in [0, 1].
    """
    given_mean, given_std = _as_mean_and_std(input_range)
    scale = [given / own for given, own in zip(given_std, std, strict=True)]
    shift = [(given - own) / s for given, own, s in zip(given_mean, mean, std, strict=True)]
    if scale == [1.0] * 3 and shift == [0.0] * 3:
        return pixels
    return torch.addcmul(_per_channel(shift, pixels), pixels, _per_channel(scale, pixels))


def _as_mean_and_std(input_range: InputRange) -> tuple[Rgb, Rgb]:
    """The (mean, std) with which images in [0, 1] would have been normalised to what the caller holds."""
    if input_range == "unit":
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if input_range == "uint8":
        return (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)
    if input_range == "imagenet":
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = input_range
    return mean, std


def _is_mean_and_std(pair: object) -> bool:
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        return False
    numbers = all(
        isinstance(part, tuple | list)
        and len(part) == 3
        and all(isinstance(v, int | float) and math.isfinite(v) for v in part)
        for part in pair
    )
    return numbers and all(v > 0 for v in pair[1])


def _per_channel(values: list[float], like: Tensor) -> Tensor:
    """(3, 1, 1), filled on the device: a copy from the host would make it wait."""
    return torch.stack([like.new_full((1, 1), value) for value in values])
