"""EXIF orientation: how a picture is to be turned before it is looked at, and its boxes with it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

Size = tuple[int, int]
"""(width, height) in pixels."""

# What makes the stored pixels upright: (exchange x and y, then mirror x, then mirror y). 1 leaves them as they are.
_STEPS = {
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of a Pillow image, 1 to 8; 1 where there is none, or none that EXIF knows.

    A TIFF has 1 once it is decoded: Pillow turns it then.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in _STEPS else 1


def upright_size(stored: Size, orientation: int) -> Size:
    """Return the (width, height) that stored pixels have once they are turned upright."""
    return stored[::-1] if _exchanges(orientation) else stored


def boxes_refer_to_stored(stored: Size, orientation: int, annotated: Size) -> bool:
    """Say whether boxes were drawn on the stored pixels, so that they turn with them, or on the upright picture.

    The annotated (width, height) tells. Where both have the same, the boxes are taken to refer to the stored pixels, as
    COCO's do.
    """
    return annotated == stored or annotated != upright_size(stored, orientation)


def is_unclear(stored: Size, orientation: int) -> bool:
    """Say whether the size of a turned picture does not tell what its boxes refer to: turned by 180°, or square."""
    return orientation != 1 and upright_size(stored, orientation) == stored


def turn_boxes(boxes: NDArray[np.floating], stored: Size, orientation: int) -> NDArray[np.floating]:
    """Turn boxes (M, 4) xyxy from the stored pixels to the upright picture."""
    if orientation == 1:
        return boxes
    exchange, mirror_x, mirror_y = _STEPS[orientation]
    turned = boxes[:, [1, 0, 3, 2]] if exchange else boxes.copy()
    width, height = upright_size(stored, orientation)
    if mirror_x:
        turned[:, [0, 2]] = width - turned[:, [2, 0]]
    if mirror_y:
        turned[:, [1, 3]] = height - turned[:, [3, 1]]
    return turned


def _exchanges(orientation: int) -> bool:
    return orientation in _STEPS and _STEPS[orientation][0]
