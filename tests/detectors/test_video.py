from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from detectors.video import Frame, VideoWriter, read_video, video_info
from vfmdistill.errors import InputError

TIMES = [0.0, 0.1, 0.25, 0.3, 0.5]


def frames(height: int = 48, width: int = 64) -> list[Frame]:
    """Grey frames that grow lighter, with a dark upper left quarter."""
    made = []
    for number, seconds in enumerate(TIMES):
        pixels = torch.full((3, height, width), 80 + 30 * number, dtype=torch.uint8)
        pixels[:, : height // 2, : width // 2] = 10
        made.append(Frame(pixels, seconds))
    return made


def write(path: Path, *sizes: int) -> Path:
    with VideoWriter(path, Fraction(10)) as writer:
        for frame in frames(*sizes):
            writer.write(frame)
    return path


@pytest.fixture
def library() -> None:
    pytest.importorskip("av", reason="PyAV is not installed: pip install 'vfmdistill[video]'")


@pytest.fixture
def errors_logged(library: None) -> Iterator[None]:
    """Let PyAV report errors, as torchvision may: with threads in the decoder that can be a deadlock."""
    import av

    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    yield
    av.logging.set_level(level)


@pytest.mark.usefixtures("library")
def test_frames_and_their_times_survive(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    assert video_info(path).frames == 5
    read = list(read_video(path))
    assert [frame.seconds for frame in read] == pytest.approx(TIMES, abs=1e-4)
    for frame, expected in zip(read, frames(), strict=True):
        assert frame.pixels.shape == (3, 48, 64)
        assert frame.pixels.dtype == torch.uint8
        assert (frame.pixels.float() - expected.pixels.float()).abs().mean() < 4


@pytest.mark.usefixtures("library")
def test_odd_sides_lose_a_pixel(tmp_path: Path) -> None:
    assert next(read_video(write(tmp_path / "a.mp4", 49, 63))).pixels.shape == (3, 48, 62)


@pytest.mark.usefixtures("library")
def test_times_always_rise_and_later_frames_are_scaled_to_the_first(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", Fraction(10)) as writer:
        for seconds, side in ((0.2, 32), (0.2, 64), (0.1, 16)):
            writer.write(Frame(torch.full((3, side, side), 120, dtype=torch.uint8), seconds))
    read = list(read_video(tmp_path / "a.mp4"))
    assert [frame.pixels.shape[1:] for frame in read] == [(32, 32)] * 3
    assert read[0].seconds < read[1].seconds < read[2].seconds
    assert all(abs(float(frame.pixels.float().mean()) - 120) < 4 for frame in read)


@pytest.mark.usefixtures("library")
def test_frames_are_turned_as_the_file_says(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    content = bytearray(path.read_bytes())
    # The matrix of the track header: a quarter turn clockwise, in fixed-point numbers.
    matrix = content.index(b"tkhd") + 4 + 40
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content)
    pixels = next(read_video(path)).pixels.float().mean(0)
    assert pixels.shape == (64, 48)
    assert pixels[:32, 24:].mean() < 30  # the dark quarter went to the upper right
    assert pixels[:32, :24].mean() > 60


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("logged", [False, True])
def test_a_damaged_file_gives_the_frames_before_the_damage(
    logged: bool, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if logged:
        request.getfixturevalue("errors_logged")
    path = tmp_path / "a.mp4"
    with VideoWriter(path, Fraction(10)) as writer:
        for number in range(60):
            pixels = torch.randint(256, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
            writer.write(Frame(pixels, number / 10))
    content = bytearray(path.read_bytes())
    middle, third = len(content) // 2, len(content) // 3
    content[middle : middle + third] = bytes(third)
    path.write_bytes(content)
    read: list[Frame] = []
    with pytest.raises(InputError, match=r"a\.mp4 is damaged: Invalid data"):
        read.extend(read_video(path))
    assert 10 < len(read) < 60


@pytest.mark.usefixtures("library")
def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(InputError, match=r"a\.mp4 cannot be read: Invalid data"):
        list(read_video(tmp_path / "a.mp4"))
    with pytest.raises(InputError, match=r"b\.mp4 cannot be read: No such file"):
        video_info(tmp_path / "b.mp4")
    with pytest.raises(InputError, match=r"a\.mp4 cannot be written: No such file"):
        write(tmp_path / "nowhere" / "a.mp4")


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"PyAV, which is not installed: pip install 'vfmdistill\[video\]'"):
        video_info("a.mp4")
