"""Stages: the epochs at which a training run changes what it does, scaled from the published runs."""

from __future__ import annotations

from typing import NamedTuple


class Stages(NamedTuple):
    """First epochs of the stages of a run; a boundary that is no epoch of the run has the number after the last."""

    augmented_from: int
    """Strong augmentation begins; before it images are flipped and resized only."""
    dense_until: int
    """Mosaic and mixup end; 0 in runs without them."""
    flat_until: int
    """The learning rate leaves its plateau for the cosine."""
    plain_from: int
    """The last stage: no augmentation, one size, constant rate, and λ at its default from the next update on."""

    def scaled(self, published_epochs: int, epochs: int) -> Stages:
        """Return the boundaries of a run of `epochs` that keeps the published proportions.

        The plain beginning is there for the warm-up of the learning rate, so a longer run does not lengthen it.
        """
        if epochs == published_epochs:
            return self
        at = [min(epochs, round(boundary * epochs / published_epochs)) for boundary in self]
        return Stages(min(self.augmented_from, at[0]), *at[1:])
