"""Reading image files: one way for training, evaluation and the checks before them."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image, ImageOps

from detectors.data.problems import Kind
from vfmdistill.errors import InputError

# What Pillow converts to RGB faithfully; 16-bit and floating-point greys it would clip to white.
PIXEL_FORMATS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr"})
# The EXIF orientations that turn a picture by a quarter, and so swap its sides.
QUARTER_TURNS = frozenset({5, 6, 7, 8})


def read_image(path: Path, *, upright: bool = False) -> Image.Image:
    """Read an image as RGB, 8 bits a channel.

    Grey, palette and CMYK pictures are converted; an alpha channel is left out.

    Args:
        path: the file.
        upright: turn the picture as its EXIF orientation says. Otherwise the pixels are taken as they are stored: the
            sizes and boxes of COCO refer to those.

    Raises:
        InputError: the file is missing, unreadable, truncated, or of a pixel format that is not 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image, upright=upright)
    except InputError as error:
        raise InputError(f"image {path}: {error}") from None
    # Pillow's decoders raise SyntaxError, struct.error, EOFError and more for files that are merely broken.
    except Exception as error:
        raise InputError(f"image {path} cannot be read: {error}") from error


def image_problem(path: Path, size: tuple[int, int]) -> tuple[Kind, str] | None:
    """Say what is wrong with an image file, or None.

    The whole stream is decoded, so that truncation is found wherever it lies; JPEGs at an eighth of their size and
    without colour, where Pillow still reads every byte.

    Args:
        path: the file.
        size: (width, height) in pixels that the annotations expect.
    """
    if not path.is_file():
        return Kind.IMAGE_MISSING, f"{path} does not exist"
    try:
        with Image.open(path) as image:
            stored = image.size
            if image.mode not in PIXEL_FORMATS:
                return Kind.IMAGE_UNREADABLE, _mode_fault(image.mode)
            image.draft("L", (max(1, stored[0] // 8), max(1, stored[1] // 8)))
            image.load()
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if stored != size else 1
    except Exception as error:
        return Kind.IMAGE_UNREADABLE, str(error)
    if stored == size:
        return None
    text = f"the file is {stored[0]} × {stored[1]}, the annotations say {size[0]} × {size[1]}"
    if orientation in QUARTER_TURNS and stored == size[::-1]:
        text += f" (it was annotated as turned by its EXIF orientation {orientation}: store the pixels turned)"
    return Kind.IMAGE_SIZE, text


def to_rgb(image: Image.Image, *, upright: bool = False) -> Image.Image:
    """Return an image as RGB, 8 bits a channel, and as `upright` says turned by its EXIF orientation.

    Raises:
        InputError: the pixel format is not 8 bits a channel.
    """
    if image.mode not in PIXEL_FORMATS:
        raise InputError(_mode_fault(image.mode))
    if upright:
        image = ImageOps.exif_transpose(image)
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        # Pillow warns about the direct way, which has the same result.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _mode_fault(mode: str) -> str:
    return f"pixel format {mode!r} cannot be brought to RGB without loss; convert the file to 8-bit grey or RGB"
