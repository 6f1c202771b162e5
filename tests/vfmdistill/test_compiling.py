"""Compiling: a transformer block by block, so that sizes of images do not compile it again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from vfmdistill.teachers.compiling import compile_network


class Block(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens + self.linear(self.norm(tokens))


class Transformer(nn.Module):
    """Refuses, as patch embeddings do, in a way that compiles anew for each size."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 32, 4, 4)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        height = int(images.shape[-2])
        assert height % 4 == 0, f"height {height} is no multiple of 4"
        tokens = self.embed(images).flatten(2).mT + torch.tensor(height / images.shape[-1])
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    modules: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: modules.append(self))
    return modules


def test_the_blocks_of_a_transformer_are_compiled(compiled: list[nn.Module]) -> None:
    network = Transformer(*[Block() for _ in range(6)])
    compile_network(nn.Sequential(network))
    assert compiled == list(network.blocks)


@pytest.mark.parametrize(
    "network",
    [
        Transformer(Block()),  # nothing repeats
        Transformer(Block(), nn.Linear(32, 32)),  # blocks of two kinds
        nn.Sequential(Transformer(*[Block() for _ in range(3)]), nn.Linear(500, 500)),  # a small part of the network
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5)),  # of one kind, in different widths
        nn.AvgPool2d(2),
    ],
)
def test_other_networks_are_compiled_as_a_whole(compiled: list[nn.Module], network: nn.Module) -> None:
    compile_network(network)
    assert compiled == [network]


def test_ten_sizes_compile_two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    plain = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: plain(self, backend=counter))
    network = Transformer(*[Block() for _ in range(6)]).eval()
    keys = list(network.state_dict())
    images = [torch.rand(2, 3, 4 * (4 + step), 4 * (9 - step % 3)) for step in range(10)]
    with torch.no_grad():
        expected = [network(batch) for batch in images]
        compile_network(network)
        for batch, tokens in zip(images, expected, strict=True):
            torch.testing.assert_close(network(batch), tokens)
    assert counter.frame_count == 2  # the first number of tokens, and any
    assert list(network.state_dict()) == keys
    torch.compiler.reset()
