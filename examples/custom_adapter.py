"""Write an adapter for a network of your own and distil into it, on random images: python examples/custom_adapter.py

An adapter is any object with the two methods below; `register_adapter` makes `attach` use it for a kind of network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import vfmdistill


class Columns(nn.Module):
    """A network that no rule could read: tokens that go column by column, behind a summary of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 16, 16)
        self.mixer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).transpose(2, 3).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.mixer(torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1))[:, 0])
        return logits


class ColumnsAdapter:
    def taps(self, student: nn.Module) -> Sequence[vfmdistill.Tap]:
        return [vfmdistill.Tap("mixer", student.get_submodule("mixer"))]

    def feature_map(self, tap: vfmdistill.Tap, output: Tensor, images: Tensor) -> Tensor:
        rows, columns = images.shape[2] // 16, images.shape[3] // 16
        return output[:, 1:].unflatten(1, (columns, rows)).permute(0, 3, 2, 1)  # (N, C, rows, columns)


def main(steps: int = 40) -> list[float]:
    """Return the semantic loss of every step."""
    torch.manual_seed(0)
    vfmdistill.register_adapter(Columns, ColumnsAdapter())
    student = Columns()
    with vfmdistill.attach(student, teacher=nn.Conv2d(3, 16, 8, 8)) as distiller:
        optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], lr=3e-3)
        losses = []
        for _ in range(steps):
            images, labels = torch.rand(8, 3, 64, 96), torch.randint(4, (8,))
            loss = nn.functional.cross_entropy(student(images), labels) + distiller.loss(images)
            loss.backward()
            distiller.observe()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(distiller.metrics()["semantic_loss"])
    return losses


if __name__ == "__main__":
    print(*(f"{loss:.3f}" for loss in main()))
