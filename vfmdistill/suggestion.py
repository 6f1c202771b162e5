"""suggest_modulator: the modulator for the next run, from the log of a finished one."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vfmdistill.errors import InputError
from vfmdistill.modulator import NO_GRADIENT, GradientModulator
from vfmdistill.update import Update

_FEWEST = 2  # epochs to suggest from


class _Epoch(NamedTuple):
    """What a log tells of an epoch: λ during it, the mean share in percent, λ after it, and why; NaN where unknown."""

    weight: float
    share: float
    next_weight: float
    reason: str

    @property
    def taught(self) -> bool:
        """Whether the teacher had a share of the gradient."""
        return self.weight > 0 and self.share >= NO_GRADIENT and math.isfinite(self.share + self.next_weight)

    @property
    def is_last_stage(self) -> bool:
        """Whether λ was given up to its default."""
        return self.reason == "final_phase"


def suggest_modulator(log: str | os.PathLike[str] | Iterable[Mapping[str, Any] | Update]) -> GradientModulator:
    """Return the modulator that keeps the share where a run that went well had it.

    The way of the authors (github.com/RT-DETRs/RT-DETRv4/issues/17) with the eyes replaced by quartiles: train with a
    fixed λ for a while, look at the share, take ρ from it. Best from a run with a fixed λ; one that was modulated shows
    the share that its own window allowed.

    - Epochs count that have a finite share of at least 1e-6 % at a λ above 0 and lie before the last stage (reason
      "final_phase"), where λ is the default whatever the share. A share is taken as it is, at the λ of its epoch: how
      it would be at another λ is a guess, and a controller needs none.
    - Of these, the epochs that left λ unchanged, or all if fewer than 2 did: where λ moves, the share is on its way.
    - Of these, the second half: in the first the share falls or rises with the features that the student still lacks.
    - ρ is their median share, since one odd epoch shall not move it.
    - δ is a tenth of ρ, the authors' advice, or half the distance between the quartiles of the shares if that is more:
      in a window narrower than the share scatters by itself, λ would follow the noise in most epochs; this one lets
      about half of them or more pass. It is at most half of what lies between ρ and 0 or 100.
    - weight is the median λ of these epochs, at which the share was ρ. default_weight is that λ too, or the one that
      the run's own last stage used.

    Args:
        log: the path of a `metrics.jsonl` as detectors/training writes it, or its lines as mappings with "weight" (λ
            during the epoch), "share", "next_weight" and "modulation" (the reason), or what `Distiller.update()`
            returned, in the order of the run. Mappings without a share, such as those of a run without a teacher,
            count for nothing.

    Raises:
        InputError: the log cannot be read, or has fewer than 2 epochs to suggest from.
    """
    lines = _read(Path(log)) if isinstance(log, (str, os.PathLike)) else log
    if isinstance(lines, (Mapping, Update)) or not isinstance(lines, Iterable):
        raise InputError(f"log: a {type(log).__name__}; expected a path, or the lines of a log or updates in a list.")
    epochs = [_epoch(entry) for entry in lines]
    taught = [epoch for epoch in epochs if epoch.taught]
    usable = [epoch for epoch in taught if not epoch.is_last_stage]
    if len(usable) < _FEWEST:
        raise InputError(
            f"a log of {len(epochs)} epochs: {len(taught)} have a share of {NO_GRADIENT} % or more at a λ above 0, "
            f"{len(usable)} of these before the last stage; expected {_FEWEST} or more. Train for longer, with a "
            "teacher and distiller.update() after every epoch."
        )
    held = [epoch for epoch in usable if epoch.next_weight == epoch.weight]
    epochs_of_rho = _second_half(held if len(held) >= _FEWEST else usable)
    shares = [epoch.share for epoch in epochs_of_rho]
    rho, weight = statistics.median(shares), statistics.median(epoch.weight for epoch in epochs_of_rho)
    if rho >= 100:
        raise InputError("the median share is 100 %, all of the gradient; expected less. Check what else is trained.")
    delta = min(max(0.1 * rho, _quartile_distance(shares) / 2), 0.5 * rho, 0.5 * (100 - rho))
    last_stage = [epoch.next_weight for epoch in epochs if epoch.is_last_stage and epoch.next_weight > 0]
    return GradientModulator(weight, rho, delta, last_stage[-1] if last_stage else weight)


def _read(path: Path) -> list[Mapping[str, Any]]:
    """Return the objects of a file of JSON lines; one that was not finished is left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}. Expected the metrics.jsonl of a run.") from error
    return [_object(line, f"line {number} of {path}") for number, line in enumerate(text.split("\n")[:-1], start=1)]


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{where} is {line[:60]!r}; expected a JSON object. Give the metrics.jsonl of a run.")
    return content


def _epoch(entry: object) -> _Epoch:
    if isinstance(entry, Update):
        if entry.teachers:
            raise InputError(
                f"an update of several modulators, for {', '.join(entry.teachers)}; expected those of one. Give "
                "[update.teachers[name] for update in log]."
            )
        return _Epoch(entry.previous, _number(entry.share), entry.weight, entry.reason)
    if isinstance(entry, Mapping):
        weight, share, next_weight = (_number(entry.get(key)) for key in ("weight", "share", "next_weight"))
        return _Epoch(weight, share, next_weight, str(entry.get("modulation")))
    raise InputError(f"a log with a {type(entry).__name__} in it; expected mappings or updates.")


def _number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _second_half(epochs: Sequence[_Epoch]) -> Sequence[_Epoch]:
    return epochs[len(epochs) // 2 :]


def _quartile_distance(shares: Sequence[float]) -> float:
    """Return the distance between the first and the third quartile, 0 for one share."""
    if len(shares) < 2:
        return 0.0
    first, _, third = statistics.quantiles(shares, n=4, method="inclusive")
    return third - first
