from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from detectors.data.images import read_image
from detectors.pixels import is_one_picture, to_pixels
from vfmdistill.errors import InputError

ARRAY = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_all_kinds_of_one_picture_give_the_same_pixels(tmp_path: Path) -> None:
    Image.fromarray(ARRAY).save(tmp_path / "a.png")
    expected = torch.from_numpy(ARRAY).permute(2, 0, 1)
    for picture in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.open(tmp_path / "a.png"),
        ARRAY,
        ARRAY[::-1, :, ::-1][::-1, :, ::-1],
        expected,
    ):
        pixels = to_pixels(picture)
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels, expected)
    assert torch.equal(to_pixels(expected / 255), (expected / 255).float())
    assert to_pixels((expected / 255).half()).dtype == torch.float32


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_pillow_images_of_many_modes(mode: str) -> None:
    image = Image.fromarray(ARRAY).convert("RGBA" if mode == "RGBA" else "RGB").convert(mode)
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(to_pixels(image), expected)


def test_grey_becomes_three_equal_channels() -> None:
    grey = ARRAY[..., 0]
    for picture in (grey, grey[..., None], torch.from_numpy(grey)[None], Image.fromarray(grey)):
        pixels = to_pixels(picture)
        assert pixels.shape == (3, 4, 6)
        assert all(np.array_equal(channel, grey) for channel in pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_and_pillow_images_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    turn = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a, -1),
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1], 8: lambda a: np.rot90(a),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(ARRAY).save(tmp_path / "a.png", exif=exif)
    upright = torch.from_numpy(turn(ARRAY).copy()).permute(2, 0, 1)
    assert torch.equal(to_pixels(tmp_path / "a.png"), upright)
    assert torch.equal(to_pixels(Image.open(tmp_path / "a.png")), upright)
    # Data sets mean the stored pixels.
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), ARRAY)


def test_the_given_picture_is_not_changed_by_what_is_done_with_the_pixels() -> None:
    array = ARRAY.copy()
    array.flags.writeable = False
    to_pixels(array).zero_()
    assert np.array_equal(array, ARRAY)


def test_tells_one_from_many() -> None:
    assert all(map(is_one_picture, ["a.png", Path("a.png"), ARRAY, torch.zeros(3, 2, 2), Image.new("L", (2, 2))]))
    assert not any(map(is_one_picture, [[], (ARRAY,), iter([]), torch.zeros(2, 3, 2, 2), np.zeros((2, 4, 4, 3))]))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (ARRAY.astype(np.float32), "as uint8, 0 to 255; got float32"),
        (ARRAY.transpose(2, 0, 1), r"as \(H, W, 3\), RGB, or \(H, W\), grey; got the shape \(3, 4, 6\)"),
        (np.zeros((4, 6, 4), dtype=np.uint8), r"got the shape \(4, 6, 4\)"),
        (np.zeros((0, 6, 3), dtype=np.uint8), r"got the shape \(0, 6, 3\)"),
        (torch.zeros(4, 6, 3), r"as \(3, H, W\), RGB, or \(1, H, W\), grey; got the shape \(4, 6, 3\)"),
        (torch.zeros(3, 4, 6, dtype=torch.int64), "as uint8 or floating point, got torch.int64"),
        (torch.full((3, 4, 6), 255.0), "got values from 255 to 255; do not normalise it, and divide by 255"),
        (torch.full((3, 4, 6), -0.1), "in \\[0, 1\\]"),
        (torch.full((3, 4, 6), torch.nan), "got values from nan to nan"),
        (7, "got int"),
        ("nowhere.png", "image nowhere.png cannot be read"),
        (Image.new("I;16", (3, 3)), "pixel format 'I;16' cannot be brought to RGB without loss"),
    ],
)
def test_what_is_no_picture(picture: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_pixels(picture)  # type: ignore[arg-type]


def test_a_broken_file_behind_a_pillow_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(InputError, match="Pillow image cannot be decoded"):
        to_pixels(Image.open(path))
