"""Training of a small student by one process or by several, wrapped, accumulated or checkpointed; what must agree."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import vfmdistill
from vfmdistill import GradientModulator

STEPS, EPOCHS = 3, 3
IMAGES = torch.rand(STEPS, 4, 3, 32, 48, generator=torch.Generator().manual_seed(0))
Wrap = Callable[[nn.Module], nn.Module]


class Student(nn.Module):
    """Small, and without anything that depends on who else is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.body = nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 12, 2, 2))
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.body(self.stem(images))).mean((2, 3)))
        return logits


class Checkpointed(Student):
    """Computes everything but the head a second time in the backward pass."""

    def forward(self, images: Tensor) -> Tensor:
        features = checkpoint(self._features, images, use_reentrant=False)
        logits: Tensor = self.head(features)
        return logits

    def _features(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(self.stem(images))).mean((2, 3))


def parts(kind: type[Student] = Student) -> tuple[Student, nn.Module]:
    """Return a student and a teacher, the same in every process."""
    torch.manual_seed(0)
    return kind(), nn.Conv2d(3, 10, 8, 8)


def train(
    student: nn.Module,
    teacher: nn.Module,
    part: slice,
    *,
    wrap: Wrap = lambda network: network,
    pieces: int = 1,
    observes: str = "each",
) -> dict[str, Any]:
    """Train with a narrow window, so that λ moves at every update.

    Args:
        student: wrapped or not.
        teacher: a module.
        part: of the batch, this process's.
        wrap: wraps the student after attaching.
        pieces: that a part is accumulated from; processes exchange gradients at the last one.
        observes: after "each" piece, or after the "last".
    """
    modulator = GradientModulator(5.0, 11.0, 0.01, 20.0)
    weights, shares, means, gradients = [], [], [], []
    with vfmdistill.attach(student, teacher, tap="body", modulator=modulator, probe=IMAGES[0]) as distiller:
        network = wrap(student)
        optimizer = torch.optim.SGD([*network.parameters(), *distiller.parameters()], lr=1e-2)
        for _ in range(EPOCHS):
            for images in IMAGES[:, part]:
                optimizer.zero_grad()
                for number, piece in enumerate(images.chunk(pieces), 1):
                    with _exchange(network, number == pieces):
                        loss = network(piece).logsumexp(1).mean() + distiller.loss(piece)
                        (loss / pieces).backward()
                    if observes == "each" or number == pieces:
                        distiller.observe()
                gradients.append([p.grad.clone() for p in distiller.parameters()])  # type: ignore[union-attr]
                shares.append(distiller.metrics()["share"])
                optimizer.step()
            means.append(distiller.update().share)
            weights.append(distiller.weight)
        return {
            "weights": weights,
            "shares": shares,
            "means": means,
            "gradients": gradients,
            "injector": [p.detach().clone() for p in distiller.parameters()],
            "student": [whole_tensor(p) for p in network.parameters()],
        }


def agrees(run: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs had the same λ, shares and weights, and λ moved at every update."""
    for key in ("weights", "shares", "means"):
        assert run[key] == pytest.approx(other[key], rel=1e-5), key
    for key in ("injector", "student"):
        torch.testing.assert_close(run[key], other[key], rtol=0, atol=1e-6)
    return len(set(run["weights"])) == EPOCHS


def shard(network: nn.Module, apart: bool = True) -> nn.Module:
    """Shard over all processes (FSDP2), the tap apart from the rest or with it."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    if apart:
        fully_shard(network.get_submodule("body"), mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def _exchange(network: nn.Module, last: bool) -> AbstractContextManager[Any]:
    """Let gradients go round in the last piece only."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(last)
        network.set_reshard_after_backward(last)
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


def whole_tensor(tensor: Any) -> Tensor:
    """Return a copy of a tensor, gathered if it is sharded."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().clone()
