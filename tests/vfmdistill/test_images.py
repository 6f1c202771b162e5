"""Image files: upright RGB of 8 bits, or an error that names the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from vfmdistill.errors import InputError
from vfmdistill.images import read_image

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_upright(orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[274] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as stored:
        upright = np.array(ImageOps.exif_transpose(stored))
    assert upright.shape == ((4, 6, 3) if orientation < 5 else (6, 4, 3))
    assert np.array_equal(upright, PIXELS) == (orientation == 1)
    given = read_image(tmp_path / "turned.png")
    assert given.dtype == torch.uint8
    assert np.array_equal(given.movedim(0, -1).numpy(), upright)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_pixel_formats_become_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    Image.fromarray(PIXELS).convert(mode).save(path)
    assert read_image(str(path)).shape == (3, 4, 6)
    if mode == "RGBA":
        assert np.array_equal(read_image(path).movedim(0, -1).numpy(), PIXELS)


def test_a_palette_with_transparency_warns_of_nothing(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS).quantize(16)
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128] * 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "palette.png").shape == (3, 4, 6)


def test_images_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jpg' does not exist"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(InputError, match="is a folder"):
        read_image(tmp_path)
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"text\.jpg' cannot be read"):
        read_image(tmp_path / "text.jpg")
    Image.fromarray(np.tile(PIXELS, (50, 50, 1))).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"cut\.jpg' cannot be read .*truncated"):
        read_image(tmp_path / "cut.jpg")
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="pixel format 'I;16'; expected 8 bits"):
        read_image(tmp_path / "deep.png")
