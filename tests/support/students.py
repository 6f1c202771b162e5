"""A small student, two teachers and one training step, for the tests of attach and of the distiller."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import Module

import vfmdistill

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


class Classifier(nn.Module):
    """A student with running statistics and dropout; stride 16, 8 channels in the middle, 12 at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 4, 4), nn.BatchNorm2d(12), nn.Dropout(0.2))
        self.relu = nn.ReLU()
        self.unused = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.relu(self.body(self.stem(images))).mean((2, 3)))
        return logits


class Wide(nn.Conv2d):
    """A teacher of 10 channels and stride 8."""

    def __init__(self) -> None:
        super().__init__(3, 10, 8, 8)


class Narrow(nn.Conv2d):
    """A teacher of 6 channels and stride 16."""

    def __init__(self) -> None:
        super().__init__(3, 6, 16, 16)


def step(student: Module, distiller: vfmdistill.Distiller, images: Tensor = IMAGES) -> Tensor:
    loss = student(images).logsumexp(1).mean() + distiller.loss(images)
    loss.backward()
    distiller.observe()
    return loss.detach()


HOOK_DICTS = [
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
]


def hooks(module: Module) -> int:
    return sum(len(getattr(part, name)) for part in module.modules() for name in HOOK_DICTS)


def same_state(one: Module, other: Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    flags = zip(one.modules(), other.modules(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs) and all(
        a.training == b.training for a, b in flags
    )
