"""MeanShare: what a modulator remembers of the shares between two updates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from vfmdistill.errors import InputError

_SPANS = 20  # that are kept; even, since neighbours are joined where a further one begins


class Span(NamedTuple):
    """What there was in consecutive steps: the sum of the finite shares, and how many they were."""

    total: float
    number: float

    @property
    def mean(self) -> float:
        """The mean share."""
        return self.total / self.number


class MeanShare:
    """Sum and number of the finite shares since the last `take`, kept on the device that they come from.

    They are kept by spans of equally many steps, so that one can tell how the share changed. The first spans are one
    step long; where there would be more than 20 of them, neighbours are joined and later ones last twice as long.
    """

    def __init__(self) -> None:
        self._ended: list[Tensor] = []  # spans, (2,): sum and number
        self._span = torch.zeros(2, dtype=torch.float64)  # the one that grows
        self._length, self._steps = 1, 0  # steps of a span, a power of two, and of the one that grows

    def add(self, share: Tensor | float) -> None:
        """Take one share, a number or 0-dim; one that is not finite is left out."""
        if isinstance(share, Tensor):
            if share.ndim != 0:
                raise InputError(f"a share of shape {tuple(share.shape)}; expected a 0-dim tensor or a number.")
            dtype = torch.float32 if share.device.type == "mps" else torch.float64  # mps has no float64
            if self._span.device != share.device or self._span.dtype != dtype:
                self._span = self._span.to(share.device, dtype)
                self._ended = [span.to(share.device, dtype) for span in self._ended]
            share = share.detach().to(dtype)
        else:
            share = torch.tensor(share, dtype=self._span.dtype, device=self._span.device)
        if self._steps == self._length:
            self._end_span()
        self._steps += 1
        observation = torch.stack([share, torch.ones_like(share)])
        self._span += torch.where(share.isfinite(), observation, torch.zeros_like(observation))

    def take(self) -> list[Span]:
        """Return the spans with finite shares, as means over all processes and the same on each, and start anew."""
        parts: list[Any] = [(self._length, self._read())]
        self._ended, self._span, self._length, self._steps = [], torch.zeros_like(self._span), 1, 0
        if distributed.is_available() and distributed.is_initialized():
            # As objects, since they must also travel where the backend cannot see the device that they were kept on.
            own, parts = parts[0], [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, own)
        longest = max(length for length, _ in parts)
        aligned = [_joined(spans, longest // length) for length, spans in parts]
        means = [_sum(spans, len(parts)) for spans in zip_longest(*aligned, fillvalue=(0.0, 0.0))]
        return _without_short_end([span for span in means if span.number])

    def state_dict(self) -> dict[str, Any]:
        """Return sum and number of this process, and the spans that they come from. Reads the device."""
        spans = self._read()
        total = _sum(spans, 1)
        return {
            "share_sum": total.total,
            "share_count": int(total.number),
            "share_spans": spans,
            "span_length": self._length,
            "span_steps": self._steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from; further keys are ignored."""
        *self._ended, self._span = torch.tensor(state["share_spans"], dtype=torch.float64).unbind()
        self._length, self._steps = state["span_length"], state["span_steps"]

    def _end_span(self) -> None:
        self._ended.append(self._span)
        if len(self._ended) == _SPANS:
            self._ended = [one + next_one for one, next_one in zip(self._ended[::2], self._ended[1::2], strict=True)]
            self._length *= 2
        self._span, self._steps = torch.zeros_like(self._span), 0

    def _read(self) -> list[list[float]]:
        spans: list[list[float]] = torch.stack([*self._ended, self._span]).tolist()
        return spans


def mean_share(spans: Sequence[Span]) -> float | None:
    """Return the mean over the shares of all spans, None where there are none."""
    return _sum(spans, 1).mean if spans else None


def _sum(spans: Sequence[Sequence[float]], processes: int) -> Span:
    totals, numbers = zip(*spans, strict=True)
    return Span(math.fsum(totals) / processes, math.fsum(numbers) / processes)


def _joined(spans: Sequence[Sequence[float]], together: int) -> list[Span]:
    """Join so many neighbours to one span each."""
    return [_sum(spans[first : first + together], 1) for first in range(0, len(spans), together)]


def _without_short_end(spans: list[Span]) -> list[Span]:
    """Join the last span with the one before if it is less than half of it, too few steps to be a mean like others."""
    if len(spans) > 1 and spans[-1].number < spans[-2].number / 2:
        return [*spans[:-2], _sum(spans[-2:], 1)]
    return spans
