"""Reading image files: one way for training, evaluation and the checks before them."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageOps

from detectors.data.orientation import Size, orientation_of
from vfmdistill.errors import InputError

# What Pillow converts to RGB faithfully; 16-bit and floating-point greys it would clip to white.
PIXEL_FORMATS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr"})

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".mpo", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

# Where a PNG may say how it is turned: chunk type and how its content begins.
_PNG_ORIENTATIONS = re.compile(rb"eXIf|(tEXt|zTXt|iTXt)(Raw profile type exif|XML:com\.adobe\.xmp)\x00")


class Picture(NamedTuple):
    """An RGB picture, 8 bits a channel, upright; the (width, height) of its stored pixels, and its EXIF orientation."""

    image: Image.Image
    stored: Size
    orientation: int


class Header(NamedTuple):
    """What a file says of its picture: the (width, height) of the stored pixels, and the EXIF orientation."""

    stored: Size
    orientation: int


def read_image(path: Path, *, upright: bool = False) -> Image.Image:
    """Read an image as RGB, 8 bits a channel.

    Grey, palette and CMYK pictures are converted; an alpha channel is left out.

    Args:
        path: the file.
        upright: turn the picture as its EXIF orientation says. Otherwise the pixels are taken as they are stored.

    Raises:
        InputError: the file is missing, unreadable, truncated, or of a pixel format that is not 8 bits a channel.
    """
    return _read(path, upright).image


def read_picture(path: Path) -> Picture:
    """Read an image upright, and say how it was stored. Errors: see `read_image`."""
    return _read(path, upright=True)


def _read(path: Path, upright: bool) -> Picture:
    try:
        with Image.open(path) as image:
            image.load()
            # Before the picture is turned, which takes its orientation away.
            stored, orientation = image.size, orientation_of(image)
            return Picture(to_rgb(image, upright=upright), stored, orientation)
    except InputError as error:
        raise InputError(f"image {path}: {error}") from None
    # Pillow's decoders raise SyntaxError, struct.error, EOFError and more for files that are merely broken.
    except Exception as error:
        raise InputError(f"image {path} cannot be read: {error}") from error


def to_rgb(image: Image.Image, *, upright: bool = False) -> Image.Image:
    """Return an image as RGB, 8 bits a channel, and as `upright` says turned by its EXIF orientation.

    Raises:
        InputError: the pixel format is not 8 bits a channel.
    """
    if fault := pixel_format_fault(image):
        raise InputError(fault)
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # Pillow warns about the direct way, which has the same result.
        image = image.convert("RGBA")
    return image.convert("RGB")


def pixel_format_fault(image: Image.Image) -> str | None:
    """Say why an image cannot become RGB, 8 bits a channel; None if it can."""
    if image.mode in PIXEL_FORMATS:
        return None
    return f"pixel format {image.mode!r} cannot be brought to RGB without loss; convert the file to 8-bit grey or RGB"


def read_headers(paths: Sequence[Path]) -> list[Header | str]:
    """Read size and orientation of image files, with as few of their bytes as possible, several at once.

    Returns:
        For each file its header, or what is wrong with it.
    """
    with ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(_header, paths))


def threads() -> int:
    """Return how many files are looked at at once: as many as there are cores, and four that wait for the disk."""
    return (os.cpu_count() or 1) + 4


def _header(path: Path) -> Header | str:
    try:
        with Image.open(path) as image:
            # Pillow decodes a whole PNG in search of an orientation behind the pixels, and turns a TIFF on decoding.
            if image.format == "PNG" and not _png_has_orientation(path):
                return Header(image.size, 1)
            if image.format == "TIFF" and orientation_of(image) != 1:
                image.load()
            return Header(image.size, orientation_of(image))
    except Exception as error:
        return str(error)


def _png_has_orientation(path: Path) -> bool:
    """Look through the names of a PNG's chunks, without reading its pixels."""
    with path.open("rb") as file:
        file.seek(8)
        while len(start := file.read(8 + 24)) >= 8:
            length, content = struct.unpack(">I", start[:4])[0], start[4:]
            if _PNG_ORIENTATIONS.match(content):
                return True
            file.seek(length + 4 - (len(start) - 8), os.SEEK_CUR)
    return False


def image_files(folder: Path) -> Iterable[Path]:
    """Yield the image files in a folder and all folders in it, in the order of their names."""
    for directory, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(directory, name)
