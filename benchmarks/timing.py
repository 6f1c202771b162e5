"""Timing: calls take turns, and what is compared are the medians of their times."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time one call, waiting for the device before and after."""
    synchronise(device)
    begin = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - begin


def alternate(
    runs: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, *, warmup: int = 3
) -> dict[str, list[float]]:
    """Time every call once a round, in an order that turns round from each round to the next.

    Args:
        runs: what is called, by name.
        rounds: how many are timed.
        device: what is waited for.
        warmup: how many go before, untimed.

    Returns:
        Seconds of each round by name.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(warmup + rounds):
        for name in list(runs) if index % 2 else reversed(list(runs)):
            elapsed = seconds(runs[name], device)
            if index >= warmup:
                times[name].append(elapsed)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Return median and interquartile range in milliseconds."""
    first, median, third = statistics.quantiles(times, n=4)
    return {"median_ms": round(1000 * median, 3), "iqr_ms": round(1000 * (third - first), 3)}


def machine(device: torch.device) -> str:
    """Return the name of what was measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()
