"""Video files, frame by frame, through PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vfmdistill.errors import InputError

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"})
_TICK = Fraction(1, 90_000)  # seconds; what times of written frames are multiples of, as in MPEG


class Frame(NamedTuple):
    """One picture of a video: RGB (3, H, W) uint8, upright, and the time at which it is shown."""

    pixels: Tensor
    seconds: float


class VideoInfo(NamedTuple):
    """What the header of a video file says; `frames` is None where it does not tell."""

    frames: int | None
    rate: Fraction


def video_info(path: str | os.PathLike[str]) -> VideoInfo:
    """Return what is known of a video before it is decoded.

    Raises:
        InputError: PyAV is missing, or the file is no video.
    """
    with _opened(path) as (_, stream):
        return VideoInfo(stream.frames or None, _rate(stream))


def read_video(path: str | os.PathLike[str]) -> Iterator[Frame]:
    """Yield the frames of a video file, turned as its metadata says.

    Raises:
        InputError: PyAV is missing, the file is no video, or it is damaged; the frames before the damage are yielded.
    """
    with _opened(path) as (container, stream), _translated(f"the video {path} is damaged"):
        # A decoder's thread that reports damage may wait for Python's lock while closing the file, with the lock, waits
        # for the thread. That happens where PyAV's log is turned on, which some versions of torchvision do.
        stream.thread_type = "NONE"
        for number, frame in enumerate(container.decode(stream)):
            pixels = np.rot90(frame.to_ndarray(format="rgb24"), k=round(frame.rotation / 90))
            seconds = number / _rate(stream) if frame.time is None else frame.time
            yield Frame(torch.from_numpy(pixels.copy()).movedim(-1, 0), float(seconds))


class VideoWriter:
    """Writes frames as an H.264 video without sound; a context manager.

    Sides of odd length lose a pixel, because the format has colours for every second one only.

    Args:
        path: the file; its ending says the container, for example ".mp4".
        rate: frames a second, which the encoder reckons with. Times are those of the frames.

    Raises:
        InputError: PyAV is missing or has no encoder, or, by `write` and `close`, the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], rate: Fraction) -> None:
        self._fault = f"the video {path} cannot be written"
        self._last = -1  # time of the last frame, in ticks
        with _translated(self._fault):
            self._container = _library().open(os.fspath(path), "w")
            self._stream = self._container.add_stream("h264", rate=rate)
            self._stream.pix_fmt, self._stream.codec_context.time_base = "yuv420p", _TICK

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, frame: Frame) -> None:
        """Add a frame; frames of another size than the first are scaled to it."""
        height, width = (max(2, side // 2 * 2) for side in frame.pixels.shape[1:])
        if self._last < 0:
            self._stream.height, self._stream.width = height, width
        array = frame.pixels[:, :height, :width].movedim(0, -1).contiguous().numpy()
        picture = _library().VideoFrame.from_ndarray(array, format="rgb24")
        # Times have to rise, also where a damaged file's do not.
        self._last = max(self._last + 1, round(frame.seconds / _TICK))
        picture.pts, picture.time_base = self._last, _TICK
        with _translated(self._fault):
            self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file."""
        with _translated(self._fault):
            if self._last >= 0:
                self._container.mux(self._stream.encode())
            self._container.close()


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[tuple[Any, Any]]:
    """Open a file for reading; give its container and first video stream."""
    library = _library()
    with _translated(f"the video {path} cannot be read"):
        container = library.open(os.fspath(path))
    with container:
        if not container.streams.video:
            raise InputError(f"the file {path} holds no video.")
        yield container, container.streams.video[0]


@contextmanager
def _translated(fault: str) -> Iterator[None]:
    """Turn PyAV's errors into ours."""
    library = _library()
    try:
        yield
    except (library.FFmpegError, library.codec.codec.UnknownCodecError) as error:
        raise InputError(f"{fault}: {getattr(error, 'strerror', None) or error}") from None


def _library() -> Any:
    try:
        import av
    except ImportError:
        raise InputError("videos need PyAV, which is not installed: pip install 'vfmdistill[video]'.") from None
    return av


def _rate(stream: Any) -> Fraction:
    """Return a stream's frames a second; 25 where the file says nothing."""
    return Fraction(stream.average_rate or stream.guessed_rate or 25)
