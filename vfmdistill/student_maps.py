"""StudentMaps: what the taps of a student put out, as checked maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vfmdistill.adapters import ForegroundAdapter, StudentAdapter, Tap
from vfmdistill.capture import Capture, device_of, probe_outputs
from vfmdistill.errors import CaptureError, DistillError, InputError


class StudentMaps:
    """Captures the taps' outputs in the student's training forwards and reads them as maps.

    Args:
        student: the student, without wrappers, on its device.
        adapter: reads the taps.
        taps: modules of the student.
        shares: of the taps in the loss, which add up to 1; None for equal ones.
        channels: of the taps' maps, which stay; None where that need not be checked.
        clones: the taps whose output is changed in place by what follows.
    """

    def __init__(
        self,
        student: nn.Module,
        adapter: StudentAdapter,
        taps: Sequence[Tap],
        *,
        shares: Sequence[float] | None = None,
        channels: Sequence[int] | None = None,
        clones: Sequence[Tap] = (),
    ) -> None:
        self.student = student
        self.taps = tuple(taps)
        self.shares = dict(zip(self.taps, shares or [1 / len(self.taps)] * len(self.taps), strict=True))
        self.device = device_of(student)
        self._adapter = adapter
        self._channels = dict(zip(self.taps, channels, strict=True)) if channels is not None else {}
        self._captures = [
            Capture(tap.module, lambda: student.training, tap.path, clones=tap in clones) for tap in self.taps
        ]

    def check(self, images: Tensor) -> None:
        """Check that the maps of these images can be taken.

        Raises:
            DistillError: the hooks are gone.
            InputError: the images are no batch, or lie on another device than the student.
            CaptureError: the student is in eval mode.
        """
        if not self._captures:
            raise DistillError("loss() after detach(): the hooks are gone. Attach again to go on distilling.")
        if not isinstance(images, Tensor) or images.ndim != 4:
            given = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
            raise InputError(f"images: {given}; expected one tensor (N, 3, H, W), the batch that the student saw.")
        if images.device != self.device:
            raise InputError(
                f"images on {images.device}, but the student was on {self.device} when attached. Move the images to "
                "it; if the student has moved since, attach after moving it."
            )
        if not torch.is_grad_enabled():
            raise CaptureError("loss() in no_grad or inference_mode, where nothing learns from it. Call it outside.")
        if not self.student.training:
            raise CaptureError(
                "loss() with the student in eval mode; only training forwards are captured. Call student.train() and "
                "run the student on the batch first."
            )

    def take(self, images: Tensor) -> list[Tensor]:
        """Return the maps (N, C, h, w) of the latest training forward by tap, and forget it.

        Args:
            images: (N, 3, H, W), the batch of that forward.

        Raises:
            CaptureError: there was none since the last take, or what came out of a tap is no map of these images.
        """
        return [self._take(tap, capture, images) for tap, capture in zip(self.taps, self._captures, strict=True)]

    def forget(self) -> None:
        """Let go of what was captured, and with it of the forward's graph."""
        for capture in self._captures:
            capture.forget()

    def probe(self, images: Tensor) -> list[Tensor]:
        """Return the maps by tap of a forward in eval mode, without gradient, that leaves the student as it was."""
        with torch.no_grad():
            outputs = probe_outputs(self.student, {tap.path: tap.module for tap in self.taps}, images)
            return [self._adapter.feature_map(tap, outputs[tap.path], images) for tap in self.taps]

    def foreground(self, tap: Tap, student_map: Tensor, images: Tensor) -> Tensor | None:
        """Return how much each cell of a map counts, (N, h, w), if the adapter says so."""
        adapter = self._adapter
        return adapter.foreground(tap, student_map, images) if isinstance(adapter, ForegroundAdapter) else None

    def remove(self) -> None:
        """Take the hooks off the student. May be called again."""
        for capture in self._captures:
            capture.remove()
        self._captures = []

    def _take(self, tap: Tap, capture: Capture, images: Tensor) -> Tensor:
        try:
            output = capture.take()
        except CaptureError:
            if all(module is not tap.module for module in self.student.modules()):
                raise CaptureError(
                    f"tap {tap.path!r} gave nothing: in its place the student now has another module than the one that "
                    "was tapped. Attach again after changing the student."
                ) from None
            raise
        try:
            feature_map = self._adapter.feature_map(tap, output, images)
        except CaptureError as error:
            advice = "If the student saw other images, pass the batch of its latest forward."
            raise CaptureError(f"{error} {advice}") from None
        return self._checked(tap, feature_map, images)

    def _checked(self, tap: Tap, feature_map: Tensor, images: Tensor) -> Tensor:
        if feature_map.ndim != 4 or feature_map.shape[0] != images.shape[0]:
            raise CaptureError(
                f"tap {tap.path!r} gave a map of shape {tuple(feature_map.shape)} for images {tuple(images.shape)}; "
                f"expected ({images.shape[0]}, C, h, w). Pass the batch of the student's latest forward."
            )
        channels = self._channels.get(tap, feature_map.shape[1])
        if feature_map.shape[1] != channels:
            raise CaptureError(
                f"tap {tap.path!r} gave a map of shape {tuple(feature_map.shape)}; expected {channels} channels, as "
                "it had when attached. If the student has changed, attach again."
            )
        if feature_map.device != self.device:
            raise CaptureError(
                f"tap {tap.path!r} gave a map on {feature_map.device}, but the student was on {self.device} when "
                "attached. Attach after moving it."
            )
        if not feature_map.requires_grad:
            raise CaptureError(
                f"the map read from tap {tap.path!r} carries no gradient. The adapter's feature_map() must not detach."
            )
        return feature_map
