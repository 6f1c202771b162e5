"""FeatureBalance: brings the maps of several teachers to one scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from vfmdistill.errors import WeightsError

_WINDOW = 1000  # losses: the mean is that of all until then, and forgets at this rate from then on
_SMALLEST_VARIANCE = 1e-8  # as a part of the mean square: what rounding makes of a map that is constant


class FeatureBalance:
    """Divides each teacher's maps by the running standard deviation of its features, one number for each teacher.

    Foundation models differ by orders of magnitude in the size of their features, and with an objective that sees it
    (mean squared error, say) the largest would drown the others. As in AM-RADIO and PHI-S (arXiv 2312.06709,
    2410.01680), the variance is the mean over channels of each channel's variance over cells and images. Objectives
    that do not see the scale, as the cosine, see no difference.

    The number follows the maps with a delay of one step; the first step goes by its own maps. Nothing is read from the
    device. Where torch.distributed runs, `settle` shares the figures in one small all-reduce, so that from then on the
    numbers are the same on all processes.

    Args:
        teachers: the teachers' names.
        device: where the maps lie.
    """

    def __init__(self, teachers: Iterable[str], device: torch.device) -> None:
        self._teachers = tuple(teachers)
        self._variances, self._counts = torch.zeros(2, len(self._teachers), device=device).unbind()
        self._unsettled = torch.zeros(2, len(self._teachers), device=device)  # sums of variances, and how many

    def add(self, maps: Mapping[str, Tensor]) -> None:
        """Take in one map (N, C, h, w) of each teacher; one that is not finite is left out."""
        variances = torch.stack([_variance(maps[name]) for name in self._teachers])
        finite = variances.isfinite()
        self._unsettled = self._unsettled + torch.stack(
            [torch.where(finite, variances, torch.zeros_like(variances)), finite.float()]
        )

    def settle(self) -> None:
        """Move the running figures by the maps since the last time; every process must call it."""
        if distributed.is_available() and distributed.is_initialized():
            self._unsettled = self._unsettled.clone()
            distributed.all_reduce(self._unsettled)
        variance, seen = self._latest()
        self._counts = self._counts + seen
        rate = seen / self._counts.clamp(min=1, max=_WINDOW)
        self._variances = torch.lerp(self._variances, variance, rate)
        self._unsettled = torch.zeros_like(self._unsettled)

    def settle_alone(self) -> None:
        """`settle` where only one process trains, so that it need not be called there; elsewhere do nothing."""
        if not (distributed.is_available() and distributed.is_initialized()):
            self.settle()

    def snapshot(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `restore` takes. Costs nothing: the tensors are replaced, never written to."""
        return self._variances, self._counts, self._unsettled

    def restore(self, snapshot: tuple[Tensor, Tensor, Tensor]) -> None:
        """Become what the snapshot was taken of."""
        self._variances, self._counts, self._unsettled = snapshot

    def scaled(self, name: str, feature_map: Tensor) -> Tensor:
        """Return a teacher's map divided by its running standard deviation, in float32 at least.

        Before any map was seen, and where all were zero, it is divided by 1.
        """
        index = self._teachers.index(name)
        variance = torch.where(self._counts > 0, self._variances, self._latest()[0])[index]
        dtype = torch.promote_types(feature_map.dtype, torch.float32)
        return feature_map.to(dtype) / torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()

    def _latest(self) -> tuple[Tensor, Tensor]:
        """Return the mean variances of the maps since the last time, and 1 where there were any, else 0."""
        total, count = self._unsettled.unbind()
        return total / count.clamp(min=1), count.clamp(max=1)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """Return each teacher's variance and the number of losses behind it, as JSON-able values. Reads the device.

        Of maps that are not settled yet nothing is in it.
        """
        columns = (self._variances.tolist(), self._counts.tolist())
        return {
            name: {"variance": variance, "count": count}
            for name, variance, count in zip(self._teachers, *columns, strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from.

        Raises:
            WeightsError: the state belongs to other teachers.
        """
        if not isinstance(state, Mapping) or state.keys() != set(self._teachers):
            raise WeightsError(
                f"a feature balance of {sorted(state) if isinstance(state, Mapping) else state!r}; expected that of "
                f"{sorted(self._teachers)}. Attach with the teachers that the state was saved from."
            )
        figures = [[state[name][key] for name in self._teachers] for key in ("variance", "count")]
        self._variances, self._counts = torch.tensor(figures, device=self._variances.device).unbind()
        self._unsettled = torch.zeros_like(self._unsettled)


def _variance(feature_map: Tensor) -> Tensor:
    """(N, C, h, w) -> the mean over channels of their variances over cells and images, 0-dim float32."""
    feature_map = feature_map.detach().float()
    variance = feature_map.var(dim=(0, 2, 3), correction=0).mean()
    return torch.maximum(variance, _SMALLEST_VARIANCE * feature_map.square().mean())
