"""Learning-rate and averaging schedules, as functions of the step."""

from __future__ import annotations

import math

from .recipe import Recipe


def flat_cosine(step: int, *, total: int, warmup: int, flat: int, plain: int, final: float, rise: int = 2) -> float:
    """Return the factor on the learning rate: warm-up, flat, half a cosine, then constant.

    The schedule of RTMDet (arXiv 2212.07784) as DEIM (arXiv 2412.04234) and RT-DETRv4 use it.

    Args:
        step: optimizer steps taken so far, from 0.
        total: steps of the whole run.
        warmup: steps of the rise from 0 to 1.
        flat: step at which the cosine starts.
        plain: steps at the end that stay at `final`.
        final: factor that the cosine ends with.
        rise: power of the warm-up: 2 for a quadratic, 1 for a linear one.
    """
    if step <= warmup:
        return (step / warmup) ** rise if warmup else 1.0
    if step <= flat:
        return 1.0
    if step >= total - plain:
        return final
    progress = (step - flat) / (total - flat - plain)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def learning_rate_factor(recipe: Recipe, step: int, steps: int) -> float:
    """Return the factor on a run's learning rates at a step of the run, with `steps` in an epoch."""
    total, stages = steps * recipe.epochs, recipe.stages
    return flat_cosine(
        step,
        total=total,
        warmup=recipe.warmup_length(total),
        flat=steps * stages.flat_until,
        plain=steps * (recipe.epochs - stages.plain_from),
        final=recipe.final_learning_rate,
        rise={"quadratic": 2, "linear": 1}[recipe.warmup],
    )


def ema_decay(updates: int, *, decay: float, warmup: int) -> float:
    """Return the decay of the averaged weights at their n-th update (from 1): decay · (1 − exp(−n / warmup))."""
    return decay * (1 - math.exp(-updates / warmup))
