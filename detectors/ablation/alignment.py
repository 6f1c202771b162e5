"""Linear CKA: how alike two sets of features of the same samples are, whatever their bases and widths.

Source: Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019 (arXiv 1905.00414). The
debiased figure takes the unbiased estimator of HSIC (Song et al., "Feature Selection via Dependence Maximization",
2012): the plain one comes out above 0 for features that have nothing in common, the more so the wider they are.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vfmdistill.errors import InputError


class Likeness(NamedTuple):
    """CKA of two sets of features: 1 for the same up to rotation, scale and offset.

    Attributes:
        plain: in [0, 1].
        debiased: around 0 for independent features; may be negative.
    """

    plain: float
    debiased: float


def linear_cka(one: Tensor, other: Tensor) -> Likeness:
    """Return the CKA of two sets of features.

    Nothing of size n × n is made: the products of centred features say all that the kernels would.

    Args:
        one: (n, p), a row for each sample, n ≥ 4.
        other: (n, q), of the same samples in the same order.

    Raises:
        InputError: other shapes, values that are not finite, or features that are the same in all samples.
    """
    for features in (one, other):
        if features.ndim != 2 or len(features) < 4:
            raise InputError(f"features of shape {tuple(features.shape)}; expected (n, p) with 4 samples or more.")
        if not features.isfinite().all():
            raise InputError("features that are not all finite; expected numbers. Look at what computed them.")
    if len(one) != len(other):
        raise InputError(f"features of {len(one)} and {len(other)} samples; expected those of the same samples.")
    one, other = _centred(one), _centred(other)
    mixed, own, others = _Products.of(one, other), _Products.of(one, one), _Products.of(other, other)
    plain = mixed.biased / (own.biased * others.biased) ** 0.5
    if min(own.unbiased, others.unbiased) <= 0:
        raise InputError(f"{len(one)} samples are too few to tell how much these features vary; give more.")
    return Likeness(plain, mixed.unbiased / (own.unbiased * others.unbiased) ** 0.5)


def map_likeness(one: Tensor, other: Tensor) -> Likeness:
    """Return the CKA of maps (N, C, h, w) and (N, D, h, w) of the same images; every cell is a sample."""
    if one.ndim != 4 or other.ndim != 4 or (len(one), *one.shape[2:]) != (len(other), *other.shape[2:]):
        raise InputError(
            f"maps of shape {tuple(one.shape)} and {tuple(other.shape)}; expected (N, C, h, w) and (N, D, h, w)."
        )
    return linear_cka(one.movedim(1, 3).flatten(0, 2), other.movedim(1, 3).flatten(0, 2))


def mismatched(maps: Tensor) -> Tensor:
    """Return maps (N, C, h, w) given to other images, N ≥ 2: half the set further, for neighbours are often alike.

    Raises:
        InputError: there is only one image, which could only keep its own.
    """
    if len(maps) < 2:
        raise InputError(f"maps of {len(maps)} images; expected 2 or more, so that none keeps its own.")
    return maps.roll(len(maps) // 2, dims=0)


class _Products(NamedTuple):
    """n² and n(n − 3) times HSIC of two linear kernels: the factors cancel in CKA."""

    biased: float
    unbiased: float

    @classmethod
    def of(cls, one: Tensor, other: Tensor) -> _Products:
        """Take the products of centred features (n, p) and (n, q)."""
        n = len(one)
        biased = (one.T @ other).square().sum()
        # What the diagonals of the kernels add to it; rows of a centred kernel sum up to 0.
        mine, yours = one.square().sum(1), other.square().sum(1)
        unbiased = biased - n / (n - 2) * (mine @ yours) + mine.sum() * yours.sum() / ((n - 1) * (n - 2))
        return cls(float(biased), float(unbiased))


def _centred(features: Tensor) -> Tensor:
    """Return features in float64 with mean 0, and a size at which no product runs over."""
    centred = features.double() - features.double().mean(0)
    size = centred.abs().max()
    # What rounding leaves of a constant is as far below it as float64 is precise.
    if size <= 1e-12 * features.double().abs().max():
        raise InputError("features that are the same in all samples; expected some that vary.")
    return centred / size
