from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detectors.ablation.alignment import linear_cka, map_likeness, mismatched
from vfmdistill.errors import InputError


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(width: int) -> Tensor:
    matrix: Tensor = torch.linalg.qr(drawn(width, width, seed=9))[0]
    return matrix


def by_kernels(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Both figures as the papers write them, with kernels of n × n."""
    n = len(one)
    eye, ones = torch.eye(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
    centre = eye - 1 / n

    def biased(k: Tensor, m: Tensor) -> Tensor:
        return torch.trace(k @ centre @ m @ centre) / (n - 1) ** 2

    def unbiased(k: Tensor, m: Tensor) -> Tensor:
        k, m = k * (1 - eye), m * (1 - eye)
        whole = torch.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
        return (whole - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))

    def ratio(hsic: Callable[[Tensor, Tensor], Tensor]) -> float:
        k, m = one @ one.T, other @ other.T
        return float(hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt())

    return ratio(biased), ratio(unbiased)


def test_figures_are_those_of_the_kernels() -> None:
    one = drawn(40, 6) + 3
    other = one[:, :3] @ drawn(3, 9, seed=1) + drawn(40, 9, seed=2) - 1
    assert linear_cka(one, other) == pytest.approx(by_kernels(one, other), abs=1e-12)
    assert linear_cka(drawn(4, 6), drawn(4, 2, seed=1)) == pytest.approx(
        by_kernels(drawn(4, 6), drawn(4, 2, seed=1)), abs=1e-9
    )


@pytest.mark.parametrize("scale", [1e-30, 3.0, 1e150])
def test_rotated_scaled_and_shifted_copies_are_the_same(scale: float) -> None:
    one = drawn(50, 8) * torch.linspace(0.1, 3, 8)
    other = (one @ rotation(8) + 5) * scale
    assert linear_cka(one, one) == pytest.approx((1, 1), abs=1e-12)
    assert linear_cka(one, other) == pytest.approx((1, 1), abs=1e-9)


def test_orthogonal_transformations_change_nothing_and_others_do() -> None:
    one = drawn(60, 5)
    other = one @ drawn(5, 7, seed=1) + drawn(60, 7, seed=2)
    figures = linear_cka(one, other)
    assert linear_cka(one @ rotation(5), other @ rotation(7)) == pytest.approx(figures, abs=1e-12)
    assert linear_cka(other, one) == pytest.approx(figures, abs=1e-12)
    assert linear_cka(one * torch.linspace(0.1, 3, 5), other) != pytest.approx(figures, abs=1e-3)


def test_independent_features_are_alike_only_with_bias() -> None:
    pairs = [linear_cka(drawn(200, 64, seed=seed), drawn(200, 96, seed=seed + 100)) for seed in range(10)]
    mean = [sum(figures) / len(pairs) for figures in zip(*pairs, strict=True)]
    assert mean[0] > 0.2
    assert abs(mean[1]) < 0.01
    assert all(abs(pair.debiased) < 0.03 for pair in pairs)


def test_half_of_what_is_there_in_common() -> None:
    # Of orthogonal columns of one length half are shared: ‖XᵀY‖ = √2, ‖XᵀX‖ = ‖YᵀY‖ = 2, in units of that length².
    columns = torch.linalg.qr(torch.cat([torch.ones(64, 1, dtype=torch.float64), drawn(64, 6)], 1))[0][:, 1:]
    assert linear_cka(columns[:, :4], columns[:, 2:6]).plain == pytest.approx(0.5, abs=1e-12)


def test_cells_of_maps_are_samples() -> None:
    one, other = drawn(3, 4, 2, 5), drawn(3, 6, 2, 5, seed=1)
    cells = [
        torch.stack([maps[image, :, row, column] for image in range(3) for row in range(2) for column in range(5)])
        for maps in (one, other)
    ]
    assert map_likeness(one, other) == linear_cka(*cells)
    assert map_likeness(one, other.flip(3)) != linear_cka(*cells)


@pytest.mark.parametrize("count", [2, 3, 8, 9])
def test_no_image_keeps_its_map_and_none_is_lost(count: int) -> None:
    maps = torch.arange(count).view(count, 1, 1, 1)
    moved = mismatched(maps).flatten().tolist()
    assert sorted(moved) == list(range(count))
    assert all(number != position for position, number in enumerate(moved))


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (drawn(9, 2), drawn(8, 2), "9 and 8 samples"),
        (drawn(3, 2), drawn(3, 2), "with 4 samples or more"),
        (drawn(9, 2, 1), drawn(9, 2), r"\(9, 2, 1\); expected \(n, p\)"),
        (drawn(9, 2), torch.full((9, 2), 0.1), "the same in all samples"),
        (drawn(9, 2), drawn(9, 2) / 0, "not all finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(one: Tensor, other: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        linear_cka(one, other)


def test_maps_of_other_images_or_grids_are_refused() -> None:
    for other in (drawn(2, 4, 2, 5), drawn(3, 4, 5, 2), drawn(3, 4, 10)):
        with pytest.raises(InputError, match=r"expected \(N, C, h, w\) and \(N, D, h, w\)"):
            map_likeness(drawn(3, 4, 2, 5), other)
    with pytest.raises(InputError, match="maps of 1 images"):
        mismatched(drawn(1, 4, 2, 5))
