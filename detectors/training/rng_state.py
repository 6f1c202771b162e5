"""RngState: what the next random numbers follow from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RngState:
    """States of torch's global generators: the CPU's, and that of an accelerator where one is used."""

    cpu: Tensor
    accelerator: Tensor | None = None

    @classmethod
    def take(cls, device: torch.device) -> RngState:
        """Return the states as they are. Does not wait for the device, whose generators live on the host.

        Args:
            device: where the network is; an accelerator's state is taken besides the CPU's.
        """
        if device.type == "cpu":
            return cls(torch.get_rng_state())
        return cls(torch.get_rng_state(), torch.get_device_module(device).get_rng_state(*_place(device)))

    def restore(self, device: torch.device) -> None:
        """Set the generators to these states; the accelerator's only if there is one among them."""
        torch.set_rng_state(self.cpu)
        if device.type != "cpu" and self.accelerator is not None:
            torch.get_device_module(device).set_rng_state(self.accelerator, *_place(device))

    def tensors(self) -> dict[str, Tensor]:
        """Return the states by name, for a file."""
        return {"cpu": self.cpu} | ({} if self.accelerator is None else {"accelerator": self.accelerator})

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> RngState:
        """Return what `tensors()` was taken from."""
        return cls(tensors["cpu"], tensors.get("accelerator"))


def _place(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # mps is one device and takes no index
