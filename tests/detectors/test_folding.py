from __future__ import annotations

import pytest
import torch
from support.random_weights import randomise
from timm.layers import BatchNormAct2d, StdConv2d
from timm.models.hgnet import HighPerfGpuBlock, LearnableAffineBlock, StemV2
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from detectors.conv_blocks import RepBlock
from detectors.folding import fold_affines, fold_branches, fold_norms


def images() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def frozen(network: nn.Module) -> nn.Module:
    return randomise(network).double().eval().requires_grad_(False)


def kinds(network: nn.Module) -> list[str]:
    return [type(module).__name__ for module in network.children()]


class Preactivated(nn.Module):
    """What the norm reads is also read by the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x).relu()


class Shared(nn.Module):
    """One convolution in front of two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.other(self.conv(self.one(self.conv(x))))
        return out


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()), ["Conv2d", "Identity", "ReLU"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4)), ["Conv2d", "Identity"]),
        (nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Identity(), nn.BatchNorm2d(6)), ["Conv2d", *["Identity"] * 2]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4)), ["Conv2d", "ReLU"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)), ["Conv2d", "Identity"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.SyncBatchNorm(4)), ["Conv2d", "Identity"]),
    ],
)
def test_a_norm_behind_a_convolution_goes_into_it(network: nn.Module, left: list[str]) -> None:
    if network[1:].state_dict().get("0.weight") is None:  # type: ignore[index]
        network = network.double().eval().requires_grad_(False)
    else:
        network = frozen(network)
    before = network(images())
    fold_norms(network, images())
    assert kinds(network) == left
    torch.testing.assert_close(network(images()), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "network",
    [
        Preactivated(),
        Shared(),
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4)),  # its weights are standardised in every forward
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_what_cannot_be_folded_stays(network: nn.Module) -> None:
    network = frozen(network)
    before, state = network(images()), {key: value.clone() for key, value in network.state_dict().items()}
    fold_norms(network, images())
    assert any("BatchNorm" in kind for kind in kinds(network))
    torch.testing.assert_close(network.state_dict(), state, rtol=0, atol=0)
    torch.testing.assert_close(network(images()), before, rtol=0, atol=0)


def test_hooks_are_removed() -> None:
    network = frozen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    fold_norms(network, images())
    assert not any(module._forward_hooks for module in network.modules())


def test_two_branches_become_one_convolution() -> None:
    network = frozen(nn.Sequential(nn.Conv2d(3, 5, 1), RepBlock(5, nn.SiLU)))
    before = network(images())
    fold_branches(network)
    assert kinds(network) == ["Conv2d", "RepBlock"]  # as long as there are norms in it
    fold_norms(network, images())
    fold_branches(network)
    assert kinds(network[1]) == ["Conv2d", "SiLU"]  # type: ignore[index]
    torch.testing.assert_close(network(images()), before, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "left"),
    [
        (StemV2(3, 4, 6, use_lab=True), 4),
        (HighPerfGpuBlock(3, 4, 6, 3, light_block=True, use_lab=True, agg="se"), 1),  # of four
        (HighPerfGpuBlock(3, 4, 6, 3, light_block=False, use_lab=True, agg="se"), 4),  # of five: others see borders
        (HighPerfGpuBlock(3, 4, 6, 2, light_block=True, use_lab=False, agg="ese"), 0),
    ],
)
def test_affine_blocks_go_into_the_pointwise_convolutions_that_read_them(network: nn.Module, left: int) -> None:
    parent = frozen(nn.Sequential(network))
    with torch.no_grad():
        for affine in (module for module in parent.modules() if isinstance(module, LearnableAffineBlock)):
            affine.scale.uniform_(-1, 2)
    before = parent(images())
    fold_affines(parent)
    assert sum(isinstance(module, LearnableAffineBlock) for module in parent.modules()) == left
    # The norms are still there, behind the convolutions: the offset is seen before them all the same.
    torch.testing.assert_close(parent(images()), before, rtol=0, atol=1e-12)
