from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from detectors.conv_blocks import ConvNorm, CSPBlock, ELANBlock, RepBlock


def test_conv_norm_keeps_the_size() -> None:
    x = torch.rand(2, 4, 6, 10)
    for kernel_size in (1, 3, 5):
        assert ConvNorm(4, 8, kernel_size)(x).shape == (2, 8, 6, 10)
    assert ConvNorm(4, 4, 3, stride=2, groups=4)(x).shape == (2, 4, 3, 5)


def test_rep_block_equals_one_convolution() -> None:
    torch.manual_seed(0)
    block = RepBlock(4, nn.Identity).eval()
    for branch in (block.conv3x3, block.conv1x1):
        nn.init.normal_(branch.norm.running_mean)
        nn.init.uniform_(branch.norm.running_var, 0.5, 2)
    kernel, bias = torch.zeros(4, 4, 3, 3), torch.zeros(4)
    for branch, padding in ((block.conv3x3, 0), (block.conv1x1, 1)):
        scale = branch.norm.weight / (branch.norm.running_var + branch.norm.eps).sqrt()
        kernel += F.pad(branch.conv.weight, [padding] * 4) * scale[:, None, None, None]
        bias += branch.norm.bias - branch.norm.running_mean * scale
    x = torch.randn(1, 4, 7, 9)
    torch.testing.assert_close(block(x), F.conv2d(x, kernel, bias, padding=1), atol=1e-5, rtol=1e-5)


def test_csp_block_leaves_by_a_convolution_only_where_widths_differ() -> None:
    narrow = CSPBlock(8, 4, num_blocks=2, expansion=0.5, activation=nn.SiLU)
    full = CSPBlock(8, 4, num_blocks=2, activation=nn.SiLU)
    x = torch.rand(2, 8, 5, 5)
    assert narrow(x).shape == full(x).shape == (2, 4, 5, 5)
    assert isinstance(narrow.leave, ConvNorm)
    assert isinstance(full.leave, nn.Identity)


def test_elan_block_joins_both_halves_and_two_stages() -> None:
    block = ELANBlock(8, 4, width=3, num_blocks=1, activation=nn.SiLU)
    assert block.join.conv.in_channels == 8 + 3 + 3
    assert block(torch.rand(2, 8, 5, 6)).shape == (2, 4, 5, 6)
