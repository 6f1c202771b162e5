"""A detector before training: what a probe finds without anything having been learnt."""

from __future__ import annotations

import torch

import detectors


def untrained_like(model: detectors.Detector, seed: int) -> detectors.Detector:
    """Return a detector of the same settings with random weights, in eval mode, on the same device.

    They are the weights that a run of that seed begins with, unless its recipe names others. The caller's random state
    is left alone.

    Args:
        model: what it shall be like.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh = detectors.build(
            model.spec.name,
            model.num_classes,
            model.class_names,
            **{"input_size": model.spec.input_size, **model.spec.changes()},
        )
    return fresh.to(next(model.parameters()).device).eval()
