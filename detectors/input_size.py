"""The size of a detector's images: (height, width), both divisible by the deepest stride."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from vfmdistill.errors import InputError

STRIDE = 32  # of the deepest map of every bundled detector


def check_input_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width), in pixels.

    Args:
        size: height and width, or one number for a square.

    Raises:
        InputError: not one or two numbers, or one that is not a positive multiple of 32; the message names the two
            nearest sizes that work.
    """
    sides = (size,) if isinstance(size, int) else tuple(size)
    if len(sides) not in (1, 2) or not all(isinstance(side, int) for side in sides):
        raise InputError(f"an input size is (height, width) in whole pixels, or one number for a square; got {size!r}.")
    height, width = sides * 2 if len(sides) == 1 else sides
    if min(height, width) < STRIDE or height % STRIDE or width % STRIDE:
        smaller, larger = ((_multiple(height, up), _multiple(width, up)) for up in (False, True))
        nearest = f"{smaller[0]} × {smaller[1]}"
        if larger != smaller:
            nearest += f" and {larger[0]} × {larger[1]}"
        raise InputError(
            f"images of {height} × {width}: height and width must be divisible by {STRIDE}. The nearest sizes that "
            f"work: {nearest}."
        )
    return height, width


def _multiple(side: int, up: bool) -> int:
    return max(STRIDE, (side + (STRIDE - 1 if up else 0)) // STRIDE * STRIDE)


def _read(value: Any) -> Any:
    """Take a lone number, also as the text of a command line, for the side of a square."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return (value[0], value[0])
    return value


def _checked(value: tuple[int, int]) -> tuple[int, int]:
    try:
        return check_input_size(value)
    except InputError as error:
        raise ValueError(str(error)) from None  # what pydantic collects


InputSize = Annotated[tuple[int, int], BeforeValidator(_read), AfterValidator(_checked)]
"""A pydantic field of this kind: "640", 640, [640] and [640, 640] mean the same."""
