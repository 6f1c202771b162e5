from __future__ import annotations

from typing import Any

import pytest
import torch

from detectors.data.mixup import mixup
from vfmdistill.errors import InputError


def target(key: int, boxes: int) -> dict[str, Any]:
    return {
        "labels": torch.full((boxes,), key),
        "boxes": torch.full((boxes, 4), key / 10),
        "image_id": torch.tensor(key),
        "orig_size": torch.tensor([key, key]),
    }


def test_every_image_is_blended_with_that_before_it() -> None:
    images = torch.tensor([0.0, 0.5, 1.0]).reshape(3, 1, 1, 1).expand(3, 3, 2, 4)
    mixed, targets = mixup(images, [target(1, 2), target(2, 0), target(3, 1)], ratio=0.55)
    assert mixed.shape == (2, 3, 2, 4)
    torch.testing.assert_close(mixed[:, 0, 0, 0], torch.tensor([0.55 * 0.5, 0.55 + 0.45 * 0.5]))
    assert [made["labels"].tolist() for made in targets] == [[1, 1], [3]]
    assert [made["image_id"].item() for made in targets] == [2, 3]
    assert targets[1]["orig_size"].tolist() == [3, 3]


def test_the_objects_of_both_are_kept_with_their_boxes() -> None:
    _, (made,) = mixup(torch.zeros(2, 3, 2, 2), [target(1, 2), target(2, 3)], ratio=0.5)
    assert made["labels"].tolist() == [2, 2, 2, 1, 1]
    assert made["labels"].dtype == torch.int64
    torch.testing.assert_close(made["boxes"][:, 0], torch.tensor([0.2, 0.2, 0.2, 0.1, 0.1]))


def test_what_goes_in_stays_what_it_is() -> None:
    images, targets = torch.rand(2, 3, 2, 2), [target(1, 1), target(2, 1)]
    before = images.clone()
    mixup(images, targets, ratio=0.5)
    assert torch.equal(images, before)
    assert [len(given["labels"]) for given in targets] == [1, 1]


@pytest.mark.parametrize(("images", "targets", "ratio"), [(1, 1, 0.5), (3, 2, 0.5), (2, 2, 1.5), (2, 2, -0.1)])
def test_what_cannot_be_mixed_is_refused(images: int, targets: int, ratio: float) -> None:
    with pytest.raises(InputError, match=rf"{images} images and {targets} targets with ratio {ratio}; expected two"):
        mixup(torch.zeros(images, 3, 2, 2), [target(1, 1)] * targets, ratio)
