from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors

from detectors.data.collate import collate
from vfmdistill.errors import InputError


def sample(key: int, height: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    return tv_tensors.Image(torch.full((3, height, 6), key, dtype=dtype)), {"image_id": torch.tensor(key)}


def test_stacks_images_and_lists_targets() -> None:
    images, targets = collate([sample(1), sample(2)])
    assert type(images) is Tensor
    assert images.shape == (2, 3, 4, 6)
    assert images[:, 0, 0, 0].tolist() == [1.0, 2.0]
    assert [target["image_id"].item() for target in targets] == [1, 2]


def test_different_sizes_are_named() -> None:
    with pytest.raises(InputError, match=r"image 2 is \(3, 5, 6\) torch\.float32 in a batch of \(3, 4, 6\)"):
        collate([sample(1), sample(2, height=5)])


def test_bytes_are_refused() -> None:
    with pytest.raises(InputError, match=r"image 1 is \(3, 4, 6\) torch\.uint8"):
        collate([sample(1, dtype=torch.uint8)])
