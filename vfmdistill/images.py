"""Reading an image file the way a teacher takes it: RGB, 8 bits a channel, upright."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from vfmdistill.errors import InputError

# What Pillow converts to RGB faithfully; 16-bit and floating-point greys it would clip to white.
_EIGHT_BITS = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr"})


def read_image(path: str | Path) -> Tensor:
    """Read an image file, turned as its EXIF orientation says.

    Grey, palette and CMYK images become RGB; an alpha channel is left out.

    Returns:
        (3, H, W), uint8, on the CPU: for `Teacher.forward` with ``input_range="uint8"``.

    Raises:
        InputError: the file is missing, is no image that Pillow can read, is damaged, or has more than 8 bits a
            channel.
    """
    import numpy as np
    from PIL import Image, ImageOps

    path = Path(path).expanduser()
    if not path.is_file():
        given = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"image {str(path)!r} {given}; expected an image file such as JPEG, PNG or WebP.")
    try:
        with Image.open(path) as image:
            mode = image.mode
            upright = ImageOps.exif_transpose(image)
    # Pillow's decoders raise SyntaxError, struct.error, EOFError and more for files that are merely broken.
    except Exception as error:
        raise InputError(
            f"image {str(path)!r} cannot be read ({error}); expected an undamaged image file such as JPEG, PNG or WebP."
        ) from error
    if mode not in _EIGHT_BITS:
        raise InputError(
            f"image {str(path)!r} has the pixel format {mode!r}; expected 8 bits a channel. "
            "Convert it to 8-bit grey or RGB."
        )
    if upright.mode == "P" and isinstance(upright.info.get("transparency"), bytes):
        upright = upright.convert("RGBA")  # Pillow warns about the direct way, which has the same result
    return torch.from_numpy(np.array(upright.convert("RGB"))).movedim(-1, 0)
