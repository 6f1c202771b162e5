"""Teachers that must not help: what they change, and what they leave."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import vfmdistill
from vfmdistill.controls import ShuffledTeacher, random_teacher
from vfmdistill.errors import InputError


class Means(nn.Module):
    """A teacher that says the mean colour of each block of 32 × 32 pixels, and of the image."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        blocks = nn.functional.avg_pool2d(images, 32)
        return blocks, blocks.mean((2, 3))


def test_every_image_gets_the_map_of_the_one_half_a_batch_before_it() -> None:
    images = torch.rand(4, 3, 64, 96)
    real, shuffled = vfmdistill.Teacher(Means())(images, (2, 3)), ShuffledTeacher(Means())(images, (2, 3))
    assert torch.equal(shuffled.map, real.map[[2, 3, 0, 1]])
    assert real.summary is not None
    assert shuffled.summary is not None
    assert torch.equal(shuffled.summary, real.summary[[2, 3, 0, 1]])


@pytest.mark.parametrize("size", [4, 5, 8, 9])
def test_no_image_gets_a_map_that_it_was_mixed_into(size: int) -> None:
    images = torch.zeros(size, 3, 32, 32)
    images[:, 0] = torch.arange(size).view(-1, 1, 1) / 16
    sources = ShuffledTeacher(Means())(images, (1, 1)).map[:, 0, 0, 0].mul(16).round().int().tolist()
    for image, source in enumerate(sources):
        assert not {image, (image - 1) % size} & {source, (source - 1) % size}  # mixup takes the image before


def test_one_image_could_only_keep_its_own() -> None:
    with pytest.raises(InputError, match="a batch of 1; expected at least 2"):
        ShuffledTeacher(Means())(torch.rand(1, 3, 64, 64), (2, 2))


def test_the_names_tell_them_from_real_ones() -> None:
    real, shuffled = vfmdistill.Teacher(Means()), ShuffledTeacher(Means())
    assert shuffled.spec.name == f"shuffled_{real.spec.name}"
    drawn = random_teacher("dinov2_vits14", seed=0).spec
    assert (drawn.name, drawn.license, drawn.embed_dim) == ("random_dinov2_vits14", "none: random weights", 384)


def test_it_is_attached_like_any_teacher() -> None:
    student = nn.Sequential(nn.Conv2d(3, 8, 32, 32), nn.Flatten(), nn.Linear(8 * 4, 2))
    images = torch.rand(4, 3, 64, 64)
    with vfmdistill.attach(student, ShuffledTeacher(Means()), tap="0", modulator=1.0, probe=images) as distiller:
        student.train()(images)
        shuffled = distiller.loss(images)
        maps, wanted = next(iter(distiller.aligned_maps(images).values()))
    assert torch.equal(wanted, nn.functional.avg_pool2d(images, 32).roll(2, 0))
    assert shuffled.item() == pytest.approx((1 - nn.functional.cosine_similarity(maps, wanted)).mean().item(), rel=1e-5)


def test_random_weights_follow_from_the_seed_and_leave_the_caller_alone() -> None:
    images = torch.rand(1, 3, 56, 56)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (random_teacher("dinov2_vits14", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    maps = [teacher(images, (4, 4)).map for teacher in (first, again, other)]
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2], atol=0.1)
