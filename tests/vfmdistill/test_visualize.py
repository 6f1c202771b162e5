"""PCA pictures: right axes, stable colours, a sheet that says what is where."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from vfmdistill.errors import InputError
from vfmdistill.visualize import fit_pca, pca_maps, save_sheet


def maps(count: int = 2, width: int = 8, height: int = 6, columns: int = 9, seed: int = 0) -> Tensor:
    return torch.randn(count, width, height, columns, generator=torch.Generator().manual_seed(seed))


def test_one_picture_for_each_map() -> None:
    pictures = pca_maps(maps(2), maps(1)[0], maps(1, height=3, columns=4, seed=2))
    assert [tuple(picture.shape) for picture in pictures] == [(6, 9, 3)] * 3 + [(3, 4, 3)]
    assert all(picture.dtype == torch.uint8 for picture in pictures)
    assert torch.equal(pictures[0], pictures[2])  # the same map, in the same basis


def test_regions_of_one_meaning_get_one_colour() -> None:
    torch.manual_seed(0)
    meanings = torch.randn(3, 16)
    labels = torch.tensor([[0, 0, 1], [1, 2, 2]])
    picture = pca_maps(meanings[labels].movedim(-1, 0) + 0.001 * torch.randn(16, 2, 3))[0].int()
    for label in range(3):
        of_it, others = picture[labels == label], picture[labels != label]
        assert (of_it[0] - of_it[1]).abs()[:2].max() <= 2  # the third axis is left with noise
        assert (of_it[0] - others).abs().amax(1).min() > 60


@pytest.mark.parametrize("cells", [3, 10, 30])
def test_the_axes_are_those_of_the_covariance(cells: int) -> None:
    feature_map = maps(1, 16, cells, 1, seed=3)
    basis = fit_pca(feature_map)
    unit = torch.nn.functional.normalize(feature_map[0, :, :, 0].T, dim=1)
    vectors = torch.linalg.eigh(torch.cov(unit.T)).eigenvectors
    rank = min(3, cells - 1)
    similarity = (basis.axes * vectors.flip(-1)[:, :3]).sum(0).abs()
    torch.testing.assert_close(similarity[:rank], torch.ones(rank), rtol=1e-3, atol=1e-3)
    largest = basis.axes.gather(0, basis.axes.abs().argmax(0, keepdim=True))
    assert (largest[:, :rank] > 0).all()


def test_colours_do_not_depend_on_length() -> None:
    given = maps(1)
    assert (pca_maps(given)[0].int() - pca_maps(given * 37)[0].int()).abs().max() <= 1


def test_another_map_in_a_given_basis() -> None:
    teacher = maps(4)
    basis = fit_pca(teacher)
    assert torch.equal(pca_maps(teacher[1], basis=basis)[0], pca_maps(teacher)[1])
    assert not torch.equal(pca_maps(teacher[1])[0], pca_maps(teacher[1], basis=basis)[0])
    with pytest.raises(InputError, match="have 5 channels, the basis 8"):
        pca_maps(maps(1, width=5), basis=basis)


def test_a_constant_map_has_one_colour() -> None:
    picture = pca_maps(torch.ones(8, 4, 4))[0]
    assert picture.reshape(-1, 3).unique(dim=0).shape[0] == 1


def test_half_precision_and_gradients_are_fine() -> None:
    assert pca_maps(maps(1).bfloat16().requires_grad_())[0].shape == (6, 9, 3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "given none"),
        ([torch.zeros(4, 5)], r"\(C, h, w\)"),
        ([torch.zeros(8, 2, 2), torch.zeros(9, 2, 2)], "one width C"),
        ([torch.zeros(2, 4, 4)], "at least 3 channels"),
        ([torch.zeros(0, 8, 4, 4)], "given none"),
        ([torch.full((8, 4, 4), float("inf"))], "inf or NaN.*dtype=torch.float32"),
    ],
)
def test_maps_that_cannot_be_shown(given: list[Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        pca_maps(*given)


def test_a_sheet(tmp_path: Path) -> None:
    photographs = [torch.full((3, 60, 90), value) for value in (0.25, 0.75)]
    red = torch.zeros(2, 3, 3, dtype=torch.uint8)
    red[0, 0] = torch.tensor([255, 0, 0], dtype=torch.uint8)
    path = save_sheet(tmp_path / "new" / "sheet.png", {"image": photographs, "teacher": [red, red]}, width=90)
    with Image.open(path) as sheet:
        assert sheet.size == (2 * 90 + 3 * 8, 20 + 2 * 60 + 3 * 8)
        assert sheet.getpixel((50, 50)) == (64, 64, 64)
        assert sheet.getpixel((50, 120)) == (191, 191, 191)
        # A cell is 30 × 30 pixels with sharp edges: red up to its last pixel, black behind it.
        left, top = 8 + 90 + 8, 20 + 8
        assert sheet.getpixel((left + 29, top + 29)) == (255, 0, 0)
        assert sheet.getpixel((left + 30, top + 29)) == (0, 0, 0)
        assert sheet.crop((8, 0, 98, 26)).getextrema() != ((255, 255),) * 3  # the caption


def test_a_long_caption_stays_in_its_column(tmp_path: Path) -> None:
    names = ["timm:vit_base_patch16_clip_quickgelu_224.openai", "timm:vit_base_patch16_clip_quickgelu_224.laion"]
    columns = {name: [torch.ones(3, 60, 90)] for name in names}
    with Image.open(save_sheet(tmp_path / "s.png", columns, width=90)) as sheet:
        first, gap, second = (sheet.crop((left, 0, right, 20)) for left, right in ((0, 98), (98, 106), (106, 196)))
    assert gap.getextrema() == ((255, 255),) * 3
    assert first.getextrema()[0][0] < 128
    assert first.crop((8, 0, 98, 20)).tobytes() != second.tobytes()  # what differs at the end is still to be read


def test_sheets_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"equal length.*'b': 2"):
        save_sheet(tmp_path / "s.png", {"a": [torch.rand(3, 4, 4)], "b": [torch.rand(3, 4, 4)] * 2})
    with pytest.raises(InputError, match="equal length"):
        save_sheet(tmp_path / "s.png", {})
    with pytest.raises(InputError, match=r"given \(1, 4, 4\)"):
        save_sheet(tmp_path / "s.png", {"a": [torch.rand(1, 4, 4)]})
