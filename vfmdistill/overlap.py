"""Overlap: the teachers run beside the student's forward, on a CUDA stream of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from vfmdistill.errors import InputError
from vfmdistill.hooks import ForwardHook

Maps: TypeAlias = Mapping[Any, Tensor]


class SideStream(Protocol):
    """Where work goes that need not wait for the student."""

    def run(self, work: Callable[[], Maps], images: Tensor) -> Maps:
        """Start the work on the images as they will be when the current stream gets here."""
        ...

    def join(self, maps: Maps) -> None:
        """Let the current stream wait for the maps, and take them over."""
        ...


class CudaSideStream:
    """A CUDA stream beside the current one. Its memory comes from a pool of its own, as the allocator has it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def run(self, work: Callable[[], Maps], images: Tensor) -> Maps:
        """Start the work behind what the current stream has been given so far."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            images.record_stream(self._stream)  # or their memory could be given away while the teachers look
            return work()

    def join(self, maps: Maps) -> None:
        """Let the current stream wait for the work, and keep the maps' memory until it is done with them."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        for feature_map in maps.values():
            feature_map.record_stream(current)


class Overlap:
    """Starts the teachers when the student gets its images, and has their maps ready at the loss.

    The student's first argument must be the very tensor that the loss is given later. Where it is not, because the
    student is fed otherwise, nothing is started early from then on, and the loss costs what it costs without overlap.

    Args:
        student: the module that is called with the images, wrapped or not.
        plan: returns what makes the teachers' maps of a batch, or None where the loss will need none, or which ones it
            will need is not known yet.
        stream: where the work goes.
    """

    def __init__(
        self, student: nn.Module, plan: Callable[[Tensor], Callable[[], Maps] | None], stream: SideStream
    ) -> None:
        self._plan = plan
        self._stream = stream
        self._started: tuple[Tensor, int, Maps] | None = None
        self._hook = ForwardHook(student, partial(self._begin, student), before=True)

    def start(self, images: object) -> None:
        """Start the teachers on the images that the student is about to see."""
        if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] != 3 or images.is_inference():
            self.forget()
            return
        if self._started is not None and self._started[0] is images and self._started[1] == images._version:
            return
        self.forget()
        if images.is_cuda and torch.cuda.is_current_stream_capturing():  # the graph would hold the teachers
            return
        work = self._plan(images)
        if work is None:
            return
        try:
            self._started = (images, images._version, self._stream.run(work, images))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # the student may be fed something else than the loss; if not, that raises it again
            self.remove()

    def take(self, images: Tensor) -> Maps | None:
        """Return the maps of these images if they were started, else None."""
        started, self._started = self._started, None
        if started is None:
            return None
        early, version, maps = started
        self._stream.join(maps)
        if early is images and images._version == version:
            return maps
        self.remove()
        return None

    def forget(self) -> None:
        """Let go of what was started."""
        if self._started is not None:
            self._stream.join(self._started[2])  # their memory is given away behind the work on it
        self._started = None

    def _begin(self, student: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():  # the student was compiled after attaching: no graph break for this
            return
        if student.training and torch.is_grad_enabled() and args:
            self.start(args[0])

    def remove(self) -> None:
        """Take the hook off the student. May be called again."""
        self._hook.remove()
        self.forget()


def choose_stream(overlap: bool | None, device: torch.device) -> SideStream | None:
    """Return where teachers run early: on CUDA unless that is turned off, elsewhere nowhere.

    Raises:
        InputError: overlap is asked for on another device.
    """
    if overlap and device.type != "cuda":
        raise InputError(f"overlap=True with a student on {device}; expected a CUDA device. Leave it out elsewhere.")
    return CudaSideStream(device) if device.type == "cuda" and overlap is not False else None
