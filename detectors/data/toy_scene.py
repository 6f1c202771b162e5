"""Drawing one picture of the toy data set.

Only integers, +, −, ×, ÷, square roots and comparisons are used on pixels: these are exact on every machine, where
sines and exponentials differ in the last bit between processors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.float64]

# Sub-pixels along each side of a pixel; the share that an object covers becomes its opacity there.
SUBPIXELS = 2


class Scene(NamedTuple):
    """A picture (S, S, 3) uint8, and its objects: class indices and tight boxes [x, y, width, height] in pixels."""

    pixels: NDArray[np.uint8]
    labels: list[int]
    boxes: list[list[int]]


class _Placement(NamedTuple):
    """Where an object lies: centre and radius in pixels, cosine and sine of its turn."""

    x: float
    y: float
    radius: float
    cos: float
    sin: float


def _striped_disc(u: Plane, v: Plane) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return u * u + v * v <= 1, np.floor(u * 3.5) % 2 == 0


def _chequered_square(u: Plane, v: Plane) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    inside = np.maximum(np.abs(u), np.abs(v)) <= 0.76
    return inside, (np.floor(u * 2.63) + np.floor(v * 2.63)) % 2 == 0


def _dotted_triangle(u: Plane, v: Plane) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    inside = (v <= 0.5) & (v >= 1.732 * np.abs(u) - 1)
    across, down = u * 2.4 - np.floor(u * 2.4) - 0.5, v * 2.4 - np.floor(v * 2.4) - 0.5
    return inside, across * across + down * down <= 0.09


def _ring(u: Plane, v: Plane) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    squared = u * u + v * v
    return (squared <= 1) & (squared >= 0.3), (u * v) > 0


def _cross(u: Plane, v: Plane) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    across, down = np.abs(u), np.abs(v)
    inside = (np.minimum(across, down) <= 0.3) & (np.maximum(across, down) <= 0.95)
    return inside, np.maximum(across, down) <= 0.45


# Class name → shape and marking in the unit circle: which points are the object's, and which have its second colour.
SHAPES: dict[str, Callable[[Plane, Plane], tuple[NDArray[np.bool_], NDArray[np.bool_]]]] = {
    "striped disc": _striped_disc,
    "chequered square": _chequered_square,
    "dotted triangle": _dotted_triangle,
    "ring": _ring,
    "cross": _cross,
}


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
    """Draw 1 to 6 textured objects of random class, colour, size and turn on a cluttered background of `size` pixels.

    Objects measure 20 to 45 % of the side and lie within the picture; one may cover a quarter of another's box. Boxes
    are those of the whole object, whether or not another covers a part.
    """
    canvas = _background(rng, size)
    for _ in range(_integer(rng, 4, 9)):
        _draw_distractor(rng, canvas)
    labels: list[int] = []
    boxes: list[list[int]] = []
    wanted = _integer(rng, 1, 7)
    for _ in range(8 * wanted):
        if len(labels) == wanted:
            break
        label = _integer(rng, 0, len(SHAPES))
        placement = _placement(rng, size)
        rows, columns, opacity, marking = _rasterise(list(SHAPES.values())[label], placement, size)
        box = _tight_box(rows, columns, opacity)
        if any(_covered_share(box, other) > 0.25 for other in boxes):
            continue
        _paint(rng, canvas[rows, columns], opacity, marking)
        labels.append(label)
        boxes.append(box)
    grain = (_uniform_plane(rng, size, size) - 0.5) * 12
    pixels = np.floor((canvas + grain[..., None]).clip(0, 255) + 0.5).clip(0, 255).astype(np.uint8)
    return Scene(pixels, labels, boxes)


def _between(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * rng.random()


def _integer(rng: np.random.Generator, low: int, high: int) -> int:
    return low + math.floor((high - low) * rng.random())


def _uniform_plane(rng: np.random.Generator, height: int, width: int) -> Plane:
    return rng.random((height, width))


def _colour(rng: np.random.Generator) -> Plane:
    return np.array([_between(rng, 20, 235) for _ in range(3)])


def _contrasting(rng: np.random.Generator, other: Plane) -> Plane:
    """Draw a colour that is clearly lighter or darker than another."""
    while True:
        colour = _colour(rng)
        if abs(float(colour[0] + colour[1] + colour[2] - other[0] - other[1] - other[2])) > 210:
            return colour


def _turn(rng: np.random.Generator) -> tuple[float, float]:
    """Draw cosine and sine of a turn by rational numbers, which need no library function that may round differently."""
    half = _between(rng, -1, 1)
    sign = 1.0 if rng.random() < 0.5 else -1.0
    return sign * (1 - half * half) / (1 + half * half), sign * 2 * half / (1 + half * half)


def _background(rng: np.random.Generator, size: int) -> Plane:
    """Return (S, S, 3): a gradient between two colours, soft blotches of two sizes, and perhaps a faint weave."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    cos, sin = _turn(rng)
    ramp = (axis[None, :] * cos + axis[:, None] * sin + 0.75) / 1.5
    first, second = _colour(rng), _colour(rng)
    canvas = first + (second - first) * ramp[..., None]
    for cells, strength in ((4, 70.0), (13, 50.0)):
        coarse = np.floor(rng.random((cells, cells, 3)) * 256).astype(np.uint8)
        soft = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float64)
        canvas += (soft / 255 - 0.5) * strength
    if rng.random() < 0.5:
        cos, sin = _turn(rng)
        wave = (axis[None, :] * cos + axis[:, None] * sin) * _between(rng, 6, 16)
        canvas += (np.abs(wave - np.floor(wave) - 0.5)[..., None] - 0.25) * _between(rng, 40, 100)
    return canvas


def _draw_distractor(rng: np.random.Generator, canvas: Plane) -> None:
    """Draw a thin stroke or a small plain dot, which belong to no class."""
    size = len(canvas)
    axis = np.arange(size) + 0.5
    across, down = axis[None, :] - _between(rng, 0, size), axis[:, None] - _between(rng, 0, size)
    if rng.random() < 0.7:
        cos, sin = _turn(rng)
        along, aside = across * cos + down * sin, down * cos - across * sin
        length, width = _between(rng, 0.1, 0.35) * size, _between(rng, 0.004, 0.012) * size
        distance = np.maximum(np.abs(along) - length, np.abs(aside) - width)
    else:
        distance = np.sqrt(across * across + down * down) - _between(rng, 0.015, 0.035) * size
    opacity = (0.5 - distance).clip(0, 1) * _between(rng, 0.5, 0.9)
    canvas += (_colour(rng) - canvas) * opacity[..., None]


def _placement(rng: np.random.Generator, size: int) -> _Placement:
    radius = _between(rng, 0.10, 0.225) * size
    cos, sin = _turn(rng)
    return _Placement(_between(rng, radius, size - radius), _between(rng, radius, size - radius), radius, cos, sin)


def _rasterise(
    shape: Callable[[Plane, Plane], tuple[NDArray[np.bool_], NDArray[np.bool_]]], place: _Placement, size: int
) -> tuple[slice, slice, Plane, Plane]:
    """Return the rows and columns around an object, its opacity there, and the share of its second colour."""
    rows = slice(max(0, math.floor(place.y - place.radius)), min(size, math.ceil(place.y + place.radius)))
    columns = slice(max(0, math.floor(place.x - place.radius)), min(size, math.ceil(place.x + place.radius)))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    down = (rows.start + (np.arange(height * SUBPIXELS) + 0.5) / SUBPIXELS - place.y) / place.radius
    across = (columns.start + (np.arange(width * SUBPIXELS) + 0.5) / SUBPIXELS - place.x) / place.radius
    u = across[None, :] * place.cos + down[:, None] * place.sin
    v = down[:, None] * place.cos - across[None, :] * place.sin
    inside, marked = shape(u, v)

    def share(points: NDArray[np.bool_]) -> Plane:
        counts = points.reshape(height, SUBPIXELS, width, SUBPIXELS).sum(axis=(1, 3))
        return counts / SUBPIXELS**2

    return rows, columns, share(inside), share(marked)


def _tight_box(rows: slice, columns: slice, opacity: Plane) -> list[int]:
    """Return [x, y, width, height] of the pixels that are at least half covered."""
    covered = opacity >= 0.5
    ys, xs = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    x, y = columns.start + int(xs[0]), rows.start + int(ys[0])
    return [x, y, int(xs[-1] - xs[0]) + 1, int(ys[-1] - ys[0]) + 1]


def _covered_share(first: list[int], second: list[int]) -> float:
    """Return the share of the smaller of two boxes that the other covers."""
    width = min(first[0] + first[2], second[0] + second[2]) - max(first[0], second[0])
    height = min(first[1] + first[3], second[1] + second[3]) - max(first[1], second[1])
    smaller = min(first[2] * first[3], second[2] * second[3])
    return max(0, width) * max(0, height) / smaller


def _paint(rng: np.random.Generator, canvas: Plane, opacity: Plane, marking: Plane) -> None:
    """Paint an object in two contrasting colours, lit from one side, over the canvas around it (a view)."""
    base = _colour(rng)
    second = _contrasting(rng, base)
    height, width = opacity.shape
    cos, sin = _turn(rng)
    light = (np.arange(width) / width - 0.5)[None, :] * cos + (np.arange(height) / height - 0.5)[:, None] * sin
    colour = (base + (second - base) * marking[..., None]) * (1 + 0.4 * light[..., None])
    canvas += (colour - canvas) * opacity[..., None]
