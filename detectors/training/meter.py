"""LossMeter: keeps the losses of many steps on the device and reads them in one copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detectors.losses.finite import check_finite


class LossMeter:
    """Collect the losses of an epoch without waiting for the device; `read()` is the only copy to the host."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, tuple[str, ...], Tensor, list[int]]] = []
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._steps = 0

    def add(self, step: int, losses: Mapping[str, Tensor], image_ids: Sequence[int]) -> None:
        """Keep the scalars of one step; `image_ids` are named if one of them turns out not to be finite."""
        self._pending.append(
            (step, tuple(losses), torch.stack([value.detach() for value in losses.values()]), list(image_ids))
        )

    def read(self) -> dict[str, float]:
        """Return the latest step's losses, by name without the suffix of their layer, and "loss", their total.

        Losses that it had none of are those of the latest step since the last reading that had some.

        Raises:
            NonFiniteError: naming step, losses and images.
        """
        if not self._pending:
            return {}
        values = torch.cat([vector.float() for _, _, vector, _ in self._pending]).tolist()
        shown: dict[str, float] = {}
        for step, names, vector, image_ids in self._pending:
            row, values = dict(zip(names, values, strict=False)), values[len(vector) :]
            check_finite(row, f"step {step} (images with ids {image_ids})")
            latest = {"loss": sum(row.values())}
            for name, value in row.items():
                base = "_".join(name.split("_")[:2])  # loss_bbox_aux_1 → loss_bbox
                latest[base] = latest.get(base, 0.0) + value
            for name, value in latest.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1
            shown |= latest
            self._steps += 1
        self._pending.clear()
        return shown

    def means(self) -> dict[str, float]:
        """Return the means over all steps since the meter was made; a step without some loss had 0 of it."""
        self.read()
        return {name: value / max(self._steps, 1) for name, value in self._sums.items()}

    def mean_of_its_own_steps(self, name: str) -> float | None:
        """Return the mean of one loss over the steps that had it, None if none had."""
        self.read()
        return self._sums[name] / self._counts[name] if name in self._counts else None

    def state(self) -> dict[str, Any]:
        """Return the sums so far, as JSON-able values; reads what is pending."""
        self.read()
        return {"sums": self._sums, "counts": self._counts, "steps": self._steps}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self._sums, self._counts, self._steps = dict(state["sums"]), dict(state["counts"]), state["steps"]
