"""Modulation: λ of every teacher of a distiller, from one modulator for all or from one each."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from vfmdistill.errors import WeightsError
from vfmdistill.fixed_weight import FixedWeight
from vfmdistill.step_shares import StepShares
from vfmdistill.update import Modulator, Update


class Modulation:
    """Hands the share to the modulators and their λ to the loss.

    Where each teacher has a λ of its own, the share of the tap's gradient is divided among the teachers in proportion
    to the L1 norms of the gradients that their losses send into the tapped maps. That costs one hook for each teacher
    and tap; with one λ for all, nothing.

    Args:
        modulator: one for all teachers, or one each by their names.
        shares: the teachers' shares of the semantic loss by name, which add up to 1.
        parameters: as `StepShares` takes them.
    """

    def __init__(
        self,
        modulator: Modulator | Mapping[str, Modulator],
        shares: Mapping[str, float],
        parameters: Callable[[], Sequence[nn.Parameter]],
    ) -> None:
        self._shared = None if isinstance(modulator, Mapping) else modulator
        self.by_teacher: dict[str, Modulator] = (
            dict(modulator) if isinstance(modulator, Mapping) else dict.fromkeys(shares, modulator)
        )
        self._shares = shares
        self._pulls: dict[str, Tensor] = {}  # L1 norms of the gradients at the taps since the last observation
        self._step_pulls: Tensor | None = None  # those of all observations of the step, (teachers,)
        self._latest: dict[str, Tensor] = {}
        self._step_shares = StepShares(parameters)

    @property
    def shared(self) -> Modulator | None:
        """The modulator of all teachers, or None where each has its own."""
        return self._shared

    @property
    def weight(self) -> float:
        """λ; where each teacher has its own, their mean by the teachers' shares."""
        if self._shared is not None:
            return self._shared.weight
        return sum(share * self.by_teacher[name].weight for name, share in self._shares.items())

    @property
    def adapts(self) -> bool:
        """Whether any λ may move."""
        return not all(isinstance(modulator, FixedWeight) for modulator in self.by_teacher.values())

    def watched(self, name: str, student_map: Tensor) -> Tensor:
        """Return the map for a teacher's loss, so that the gradient it sends back is seen apart from the others'."""
        if self._shared is not None:
            return student_map
        alias = student_map.view_as(student_map)

        def note(gradient: Tensor) -> None:
            pull = gradient.detach().abs().sum(dtype=torch.float32)
            self._pulls[name] = self._pulls[name] + pull if name in self._pulls else pull

        alias.register_hook(note)
        return alias

    def weighted(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the sum over teachers of λ × their part of the semantic loss."""
        if self._shared is not None:
            return self._shared.weight * torch.stack(list(losses.values())).sum()
        return torch.stack([self.by_teacher[name].weight * loss for name, loss in losses.items()]).sum()

    def observe(self, share: Tensor) -> None:
        """Take the share of a step in percent, 0-dim, of all teachers together. Never reads the device.

        It replaces what was observed before in the same step. Where torch.distributed runs and each teacher has its own
        λ, every process must call it: the norms are added up.
        """
        shares = share.unsqueeze(0) if self._shared is not None else self._divided(share)
        self._teach(self._step_shares.replace(shares))

    def forget(self) -> None:
        """Forget the gradients since the last observation, and the observations that no optimizer followed."""
        self._pulls = {}
        if self._step_pulls is not None:
            self._step_pulls = torch.where(self._step_shares.used, self._step_pulls, 0)
        self._step_shares.withdraw()

    def begin_anew(self) -> None:
        """Forget all that the modulators have not been given: the weights that it was read from are gone."""
        self._pulls, self._step_pulls = {}, None
        self._step_shares.flush()

    def update(self) -> Update:
        """Move every λ. Reads the device; where torch.distributed runs, every process must call it."""
        self._teach(self._step_shares.flush())
        if self._shared is not None:
            return self._shared.update()
        previous = self.weight
        updates = {name: modulator.update() for name, modulator in self.by_teacher.items()}
        seen = [update.share for update in updates.values() if update.share is not None]
        return Update(previous, self.weight, sum(seen) if seen else None, "by_teacher", updates)

    def _divided(self, share: Tensor) -> Tensor:
        """Return the part of the share of each teacher, (teachers,)."""
        pulls = torch.stack([self._pulls.get(name, torch.zeros_like(share)) for name in self.by_teacher])
        self._pulls = {}
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(pulls)
        if self._step_pulls is not None:
            over = self._step_shares.used | ~self._step_pulls.isfinite().all()  # GradScaler skips what is not finite
            pulls = pulls + torch.where(over, 0, self._step_pulls)
        self._step_pulls = pulls
        total = pulls.sum()
        parts = torch.where(total == 0, 0 * share, share * (pulls / total))
        self._latest = dict(zip(self.by_teacher, parts.unbind(), strict=True))
        return parts

    def _teach(self, shares: Tensor | None, modulators: Sequence[Modulator] | None = None) -> None:
        """Give the modulators, or copies of them, their shares of a step."""
        if shares is not None:
            for modulator, share in zip(modulators or self._distinct, shares.unbind(), strict=True):
                modulator.observe(share)

    @property
    def _distinct(self) -> Sequence[Modulator]:
        return [self._shared] if self._shared is not None else list(self.by_teacher.values())

    def finish_adapting(self) -> None:
        """From the next update on every λ is its modulator's default."""
        for modulator in self._distinct:
            modulator.finish_adapting()

    def metrics(self) -> dict[str, float | Tensor]:
        """Return "weight", and where each teacher has its own λ also "weight/NAME" and the latest "share/NAME"."""
        figures: dict[str, float | Tensor] = {"weight": self.weight}
        if self._shared is None:
            figures |= {f"weight/{name}": modulator.weight for name, modulator in self.by_teacher.items()}
            figures |= {f"share/{name}": share for name, share in self._latest.items()}
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Return the modulator's state, or {"kind": "by_teacher", "modulators": states by name}. Reads the device.

        The latest observation counts in it, also if no optimizer has used its gradients yet.
        """
        self._teach(self._step_shares.release())
        copies = copy.deepcopy(self._distinct)
        self._teach(self._step_shares.held, copies)
        if self._shared is not None:
            return copies[0].state_dict()
        states = {name: modulator.state_dict() for name, modulator in zip(self.by_teacher, copies, strict=True)}
        return {"kind": "by_teacher", "modulators": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what `state_dict()` was taken from.

        Raises:
            WeightsError: the state is one of other modulators.
        """
        if not isinstance(state, Mapping):
            raise WeightsError(f"a modulator state of type {type(state).__name__}; expected a mapping.")
        by_teacher = state.get("kind") == "by_teacher" and isinstance(state.get("modulators"), Mapping)
        if self._shared is not None and not by_teacher:
            self._shared.load_state_dict(state)
            return
        saved = sorted(state["modulators"]) if by_teacher else "one modulator for all teachers"
        own = "one modulator for all teachers" if self._shared is not None else sorted(self.by_teacher)
        if saved != own:
            raise WeightsError(
                f"the state of {_told(saved)}; expected that of {_told(own)}. Attach with the modulators that the "
                "state was saved from."
            )
        before = {name: modulator.state_dict() for name, modulator in self.by_teacher.items()}
        try:
            for name, modulator in self.by_teacher.items():
                modulator.load_state_dict(state["modulators"][name])
        except Exception:
            for name, modulator in self.by_teacher.items():
                modulator.load_state_dict(before[name])
            raise


def _told(saved: str | list[str]) -> str:
    return saved if isinstance(saved, str) else f"one modulator for each of {saved}"
