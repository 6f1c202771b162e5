"""Losses of the bundled detectors: pure functions, a matcher, and the criterion that puts them together."""

from __future__ import annotations

from detectors.losses.criterion import Criterion
from detectors.losses.finite import NonFiniteError, check_finite
from detectors.losses.matcher import HungarianMatcher

__all__ = ["Criterion", "HungarianMatcher", "NonFiniteError", "check_finite"]
