"""Small hand-made students, each odd in one way. All take images (N, 3, 64, 96); the head comes after the tap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vfmdistill import Tap


class ChannelsLast(nn.Module):
    """Its maps are (N, h, w, C), as in networks that normalise the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)
        self.blocks = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 24))
        self.head = nn.Linear(24, 4)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.blocks(self.patches(images).permute(0, 2, 3, 1))
        logits: Tensor = self.head(maps.mean((1, 2)))
        return logits


class Tokens(nn.Module):
    """Its layers give tokens behind a class token, and drop some of them out."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 16, 16)
        self.first = nn.Parameter(torch.zeros(1, 1, 16))
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 16, 0.1, batch_first=True) for _ in range(2))
        self.head = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(images), -1, -1), tokens], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        logits: Tensor = self.head(tokens[:, 0])
        return logits


class Pyramid(nn.Module):
    """Two maps, the deeper one last, in a container of the kind that is asked for."""

    def __init__(self, container: str) -> None:
        super().__init__()
        self.container = container
        self.fine, self.coarse = nn.Conv2d(3, 6, 8, 8), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 10, 2, 2))

    def forward(self, images: Tensor) -> Any:
        fine = self.fine(images)
        maps = [fine, self.coarse(fine)]
        if self.container == "dict":
            return {"stride8": maps[0], "deep": {"stride16": maps[1]}, "sizes": (64, 96)}
        return maps if self.container == "list" else (tuple(maps), None)


class OnPyramid(nn.Module):
    """A head on the maps that its backbone hands over in a dict, a list or a tuple."""

    def __init__(self, container: str) -> None:
        super().__init__()
        self.backbone = Pyramid(container)
        self.head = nn.ModuleList(nn.Linear(width, 4) for width in (6, 10))

    def forward(self, images: Tensor) -> dict[str, Any]:
        maps: Any = self.backbone(images)
        if isinstance(maps, dict):
            maps = [maps["stride8"], maps["deep"]["stride16"]]
        elif isinstance(maps, tuple):
            maps = maps[0]
        answers = [head(level.mean((2, 3))) for head, level in zip(self.head, maps, strict=True)]
        return {"logits": answers[1], "auxiliary": (answers[0], "fine")}


class Shared(nn.Module):
    """One block runs twice in a forward, and one head under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 16, 16)
        self.block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
        self.head = nn.Linear(8, 4)
        self.same_head = self.head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.stem(images)
        for _ in range(2):
            maps = maps + self.block(maps)
        return self.head(maps.mean((2, 3))), self.same_head(maps.amax((2, 3)))


class OwnAdapter(nn.Module):
    """Says itself where it is tapped, and how that is read: cells in a column, and only half of their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 32, 32)
        self.mix = nn.Conv1d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(self.stem(images).flatten(2)).mean(2))
        return logits

    def taps(self, student: nn.Module) -> Sequence[Tap]:
        return [Tap("mix", self.mix)]

    def feature_map(self, tap: Tap, output: Tensor, images: Tensor) -> Tensor:
        return output[:, :6].unflatten(2, (images.shape[2] // 32, images.shape[3] // 32))


class Frozen(nn.Module):
    """Its backbone is frozen, in eval mode whatever is said, and runs without gradients; the neck is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.BatchNorm2d(8), nn.Dropout(0.5)).requires_grad_(False)
        self.neck = nn.Sequential(nn.Conv2d(8, 10, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(10, 4)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            maps = self.backbone(images)
        logits: Tensor = self.head(self.neck(maps).mean((2, 3)))
        return logits


class Remembers(nn.Module):
    """Writes into buffers in every training forward, replaces one, makes another, and draws numbers."""

    calls: Tensor
    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 12, 4, 4), nn.BatchNorm2d(12, momentum=None))
        self.head = nn.Linear(12, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("centre", torch.zeros(12), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(self.stem(images))
        if self.training:
            self.calls += 1
            self.centre = 0.9 * self.centre + 0.1 * maps.detach().mean((0, 2, 3))
            self.register_buffer("noise", torch.rand(4))
        else:
            self.seen_in_eval = tuple(images.shape)
        logits: Tensor = self.head(maps.mean((2, 3)) - self.centre)
        return logits


class Reparametrised(nn.Module):
    """Its weights are computed from others, by a power iteration that goes on with every training forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 8, 8, 8))
        self.body = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 12, 2, 2))
        self.head = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 4))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.stem(images).relu()).mean((2, 3)))
        return logits


class Hooked(nn.Module):
    """Comes with hooks of its own, on the very module that is tapped."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 16, 16)
        self.head = nn.Linear(8, 4)
        self.body.register_forward_hook(_doubled)
        self.body.register_forward_pre_hook(_brightened)
        self.body.register_full_backward_hook(_halved)
        self.head.register_state_dict_post_hook(_renamed)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).mean((2, 3)))
        return logits


class UNet(nn.Module):
    """Finer maps follow the deepest one."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3 if step == 0 else 8, 8, 4, 4) for step in range(2))
        self.middle = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.InstanceNorm2d(12, affine=True), nn.ReLU())
        self.up = nn.ConvTranspose2d(12, 8, 4, 4)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down[0](images)
        logits: Tensor = self.head(torch.cat([fine, self.up(self.middle(self.down[1](fine)))], dim=1))
        return logits


def _doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def _brightened(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0] + 0.1,)


def _halved(module: nn.Module, inputs: Any, outputs: Any) -> None:
    return None


def _renamed(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    state[f"{prefix}scale"] = state.pop(f"{prefix}weight")
