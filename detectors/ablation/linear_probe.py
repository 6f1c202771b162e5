"""Linear probe: how well classes can be told apart by a linear function of features that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from vfmdistill.errors import DistillError, InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STRENGTHS = tuple(10.0**power for power in range(1, -7, -1))
"""What L2 is chosen among: strong to weak, so that each fit begins near its end."""
FOLDS = 5
TOLERANCE = 1e-6
"""Largest part of the objective's gradient, along the features' principal axes, where a fit ends."""


@dataclass(frozen=True)
class LinearClassifier:
    """Multinomial logistic regression on standardised features.

    Attributes:
        mean, scale: (C,), of the features that it was fitted to.
        weight: (C, K).
        bias: (K,).
    """

    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats

    def logits(self, features: Floats) -> Floats:
        """Return (M, K) of features (M, C)."""
        return (features - self.mean) / self.scale @ self.weight + self.bias

    def accuracy(self, features: Floats, labels: Ints) -> float:
        """Return the share of features (M, C) whose class (M,) is right."""
        return float((self.logits(features).argmax(1) == labels).mean())


def fit(
    features: Floats, labels: Ints, classes: int, strength: float, start: LinearClassifier | None = None
) -> LinearClassifier:
    """Return the classifier that minimises mean cross-entropy + strength / 2 · ‖weight‖².

    The bias is not drawn to 0. A feature that is the same in all samples counts for nothing.

    Args:
        features: (M, C).
        labels: (M,), in [0, classes).
        classes: how many there are, K.
        strength: of L2, above 0.
        start: a fit to the same samples that the search goes on from.

    Raises:
        InputError: shapes or labels that do not fit, or values that are not finite.
        DistillError: no minimum was found.
    """
    _check(features, labels, classes)
    mean, spread = features.mean(0), features.std(0)
    # What rounding leaves of a constant is no spread.
    scale = np.where(spread > 1e-12 * np.abs(features).max(0, initial=0.0), spread, np.inf)
    inputs = (features - mean) / scale
    wanted = np.eye(classes)[labels]
    # The search runs along the features' principal axes, each stretched so that all curve about alike: features of
    # trained networks are nearly collinear, and along them as they are it would not end. L2 knows no axes.
    variances, axes = np.linalg.eigh(inputs.T @ inputs / len(inputs))
    stretch = 1 / np.sqrt(np.maximum(variances, 0) / 4 + strength)
    turned = inputs @ axes * stretch

    def objective(flat: Floats) -> tuple[float, Floats]:
        weight, bias = _split(flat, classes)
        logits = turned @ weight + bias
        logits -= logits.max(1, keepdims=True)
        exponentials = np.exp(logits)
        total = exponentials.sum(1, keepdims=True)
        shrunk = strength * stretch[:, None] ** 2 * weight
        loss = (np.log(total[:, 0]) - (logits * wanted).sum(1)).mean() + (shrunk * weight).sum() / 2
        error = (exponentials / total - wanted) / len(labels)
        return float(loss), np.concatenate([(turned.T @ error + shrunk).ravel(), error.sum(0)])

    if start is None:
        first = np.zeros((features.shape[1] + 1) * classes)
    else:
        first = np.concatenate([(axes.T @ start.weight / stretch[:, None]).ravel(), start.bias])
    limit = TOLERANCE * min(1.0, stretch.min())  # so that no part is larger without the stretching
    found = minimize(
        objective,
        first,
        jac=True,
        method="L-BFGS-B",
        options={"gtol": limit, "ftol": 0.0, "maxiter": 20_000, "maxfun": 40_000, "maxcor": 20},
    )
    rotated, bias = _split(found.x, classes)
    slopes, level = _split(found.jac, classes)
    steepest = max(np.abs(slopes / stretch[:, None]).max(), np.abs(level).max())
    if not steepest <= TOLERANCE:
        raise DistillError(
            f"the linear probe ended with a gradient of {steepest:.1e} at L2 {strength:g}; expected at most "
            f"{TOLERANCE:g} ({found.message}). Look for features of extreme size."
        )
    return LinearClassifier(mean, scale, axes @ (rotated * stretch[:, None]), bias)


def cross_validate(
    features: Floats,
    labels: Ints,
    groups: Ints,
    classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    folds: int = FOLDS,
    seed: int = 0,
) -> dict[float, float]:
    """Return the share of held-out samples whose class is right, by strength of L2.

    Args:
        features: (M, C).
        labels: (M,).
        groups: (M,), for example the image; samples of one group are held out together, since they have more in common
            than those of the validation set have with the training set's.
        classes: how many there are.
        strengths: to try.
        folds: parts that the groups are dealt to; fewer groups make as many parts.
        seed: of the dealing.

    Raises:
        InputError: there is only one group, or as `fit`.
        DistillError: as `fit`.
    """
    _check(features, labels, classes)
    names = np.unique(groups)
    if len(names) < 2:
        raise InputError(f"samples of {len(names)} images; expected at least 2, to hold some of them out.")
    dealt = np.array_split(np.random.default_rng(seed).permutation(names), min(folds, len(names)))
    right = dict.fromkeys(sorted(strengths, reverse=True), 0.0)
    for part in dealt:
        held = np.isin(groups, part)
        classifier = None
        for strength in right:
            classifier = fit(features[~held], labels[~held], classes, strength, classifier)
            right[strength] += classifier.accuracy(features[held], labels[held]) * held.sum()
    return {strength: float(count / len(labels)) for strength, count in right.items()}


def choose(held_out: dict[float, float]) -> float:
    """Return the strength with the largest share of held-out samples right; of equals, the strongest."""
    return max(held_out, key=lambda strength: (held_out[strength], strength))


def chance(train_labels: Ints, labels: Ints, classes: int) -> float:
    """Return what is right on average if classes are guessed as often as the training labels have them."""
    seen = np.bincount(train_labels, minlength=classes) / len(train_labels)
    return float(seen[labels].mean())


def _split(flat: Floats, classes: int) -> tuple[Floats, Floats]:
    """(C + 1) · K numbers -> weight (C, K), bias (K,)."""
    return flat[:-classes].reshape(-1, classes), flat[-classes:]


def _check(features: Floats, labels: Ints, classes: int) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise InputError(
            f"features of shape {features.shape} with labels of shape {labels.shape}; expected (M, C) and (M,)."
        )
    if not 0 <= labels.min() <= labels.max() < classes:
        raise InputError(f"labels from {labels.min()} to {labels.max()}; expected 0 to {classes - 1}.")
    if not np.isfinite(features).all():
        raise InputError("features that are not all finite; expected numbers. Look at what computed them.")
