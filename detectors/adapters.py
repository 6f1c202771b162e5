"""Where to tap these detectors, and how to read the tap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from vfmdistill.adapters.protocol import Tap

AIFI_PATH = "encoder.aifi"


def aifi_taps(detector: nn.Module) -> Sequence[Tap]:
    """Return the one tap of a detector with a hybrid encoder: AIFI, whose output is F5."""
    from vfmdistill.adapters.protocol import Tap

    return [Tap(AIFI_PATH, detector.get_submodule(AIFI_PATH))]


def aifi_map(tap: Tap, output: Tensor, images: Tensor) -> Tensor:
    """Return F5, which AIFI gives as a map (N, C, h, w) already.

    Raises:
        CaptureError: it is not one of these images, by their aspect ratio.
    """
    from vfmdistill.adapters.layouts import same_aspect, unreadable

    if not same_aspect((output.shape[2], output.shape[3]), images):
        expected = "a map (N, C, h, w) in the images' aspect ratio"
        raise unreadable(tap, f"a map of shape {tuple(output.shape)}", images, expected)
    return output
