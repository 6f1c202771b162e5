from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import nn

from vfmdistill.errors import InputError
from vfmdistill.teacher import Teacher
from vfmdistill.teachers import sized_copies
from vfmdistill.teachers.positions import BICUBIC
from vfmdistill.teachers.sized_copies import SizedCopies, at_size

BEIT = "beitv2_base_patch16_224"


def network(name: str) -> Any:
    made = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


@pytest.fixture
def tiny_beit(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, embed_dim=48, depth=2, num_heads=2))
    return network(BEIT)


def test_a_copy_shares_what_does_not_depend_on_the_size(tiny_beit: Any) -> None:
    state = torch.get_rng_state()
    copy = at_size(BEIT, tiny_beit, (160, 96))
    assert torch.equal(torch.get_rng_state(), state)
    for key, parameter in copy.named_parameters():
        shared = parameter.data_ptr() == tiny_beit.get_parameter(key).data_ptr()
        assert shared == (not key.endswith("relative_position_bias_table")), key
    assert copy.get_parameter("blocks.0.attn.relative_position_bias_table").shape == (19 * 11 + 3, 2)


def test_the_own_size_gives_the_same_features(tiny_beit: Any) -> None:
    images = torch.rand(1, 3, 224, 224)
    again = at_size(BEIT, tiny_beit, (224, 224)).eval()
    torch.testing.assert_close(again(images), tiny_beit(images))


def test_hiera_resamples_its_positions() -> None:
    own = network("hiera_tiny_224")
    copy = at_size("hiera_tiny_224", own, (160, 96))
    table = BICUBIC(own.pos_embed.unflatten(1, (56, 56)).movedim(-1, 1), (40, 24))
    torch.testing.assert_close(copy.get_parameter("pos_embed"), table.flatten(2).mT)


def test_the_copies_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sized_copies, "_KEPT", 2)
    built = []

    def build(given: nn.Module, size: tuple[int, int]) -> nn.Module:
        built.append(size)
        return nn.Linear(1, 1)

    copies, own = SizedCopies(build), nn.Linear(1, 1).double()
    for size in ((1, 1), (2, 2), (1, 1), (3, 3), (1, 1), (2, 2)):
        copy = copies.at(own, size)
        assert next(copy.parameters()).dtype == torch.float64
        assert not any(parameter.requires_grad for parameter in copy.parameters())
        assert not copy.training
    assert built == [(1, 1), (2, 2), (3, 3), (2, 2)]
    copies.clear()
    copies.at(own, (1, 1))
    assert built[-1] == (1, 1)


@pytest.mark.usefixtures("tiny_beit")
def test_a_teacher_takes_any_grid() -> None:
    teacher = Teacher(f"timm:{BEIT}", pretrained=False, dtype=torch.float32)
    for grid in ((10, 15), (5, 3), (10, 15)):
        features = teacher(torch.rand(1, 3, 32 * grid[0], 32 * grid[1]), grid)
        assert features.map.shape == (1, teacher.embed_dim, *grid)
    teacher.to(torch.bfloat16)  # the copies must follow
    assert teacher(torch.rand(1, 3, 160, 96), (5, 3)).map.dtype == torch.bfloat16


def test_a_network_that_cannot_be_built_for_a_size() -> None:
    with torch.device("meta"):
        own = timm.create_model("gmlp_s16_224", num_classes=0)
        with pytest.raises(InputError, match="built for one size of images and cannot be built for 80 × 48 pixels"):
            at_size("gmlp_s16_224", own, (80, 48))
