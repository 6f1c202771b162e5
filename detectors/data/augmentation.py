"""Augmentation: what is done to the training images of one epoch, beyond flipping and resizing."""

from __future__ import annotations

from dataclasses import dataclass

from vfmdistill.errors import InputError


@dataclass(frozen=True)
class Augmentation:
    """What is applied in one epoch; without arguments, nothing but the flip and the resize.

    Mosaic and mixup are the dense part: "Dense O2O" of DEIM (https://arxiv.org/abs/2412.04234, section 3.1).

    Attributes:
        strong: photometric distortion, zoom-out and IoU crop.
        mosaic: probability that a sample becomes a mosaic of four images; zoom-out and IoU crop are for the others.
        mixup: probability that the images of a batch are blended with their neighbours.
        multi_scale: how often the input size itself occurs among the sizes drawn per batch (see `batch_sizes`).
            None: every batch has the input size.

    Raises:
        InputError: a probability outside [0, 1], or a count below 1.
    """

    strong: bool = False
    mosaic: float = 0.0
    mixup: float = 0.0
    multi_scale: int | None = None

    def __post_init__(self) -> None:
        for name in ("mosaic", "mixup"):
            probability = getattr(self, name)
            if not 0 <= probability <= 1:
                raise InputError(f"the probability {name} is {probability}; expected a number from 0 to 1.")
        if self.multi_scale is not None and self.multi_scale < 1:
            raise InputError(
                f"multi_scale is {self.multi_scale}; expected how often the input size occurs among the sizes drawn, "
                "1 or more, or None for one size."
            )
