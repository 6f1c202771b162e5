from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.students import Wide
from support.tapped import tapped
from support.transformers_students import IMAGES, STUDENTS, tiny_student, transformers
from torch import Tensor, nn

from vfmdistill import CaptureError, attach
from vfmdistill.adapters import Tap, find_adapter
from vfmdistill.adapters.transformers import TransformersAdapter


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", STUDENTS)
def test_the_tap_is_known_by_its_class(name: str) -> None:
    head, kind, settings, tapped_class, shape = STUDENTS[name]
    student = tiny_student(head, kind, settings)
    taken = tapped(student, IMAGES)
    assert taken.adapter == "TransformersAdapter"
    assert re.fullmatch(tapped_class, type(student.get_submodule(taken.path)).__name__)
    assert taken.feature_map.shape == (2, *shape)
    assert taken.share < 0.9


@pytest.mark.parametrize("name", ["segformer", "swin"])
def test_tokens_lie_as_the_model_itself_lays_them(name: str) -> None:
    student = tiny_student(*STUDENTS[name][:3]).eval()
    adapter = TransformersAdapter()
    (tap,) = adapter.taps(student)
    outputs: list[Any] = []
    tap.module.register_forward_hook(lambda module, args, output: outputs.append(output))
    model = student.get_submodule(tap.path.split(".")[0])
    given = model(IMAGES, output_hidden_states=True)
    states = given.reshaped_hidden_states if name == "swin" else given.hidden_states
    read = adapter.feature_map(tap, outputs[0], IMAGES)
    normed = [F.layer_norm(x.permute(0, 2, 3, 1), (read.shape[1],)) for x in (read, states[-1])]  # one may be already
    assert torch.allclose(*normed, atol=1e-4)


def test_tokens_of_images_that_fill_no_whole_cells() -> None:
    student = tiny_student(*STUDENTS["detr"][:3])
    assert tapped(student, torch.rand(2, 3, 70, 90)).feature_map.shape == (2, 16, 3, 3)
    student = tiny_student(*STUDENTS["swin"][:3])
    assert tapped(student, torch.rand(2, 3, 70, 90)).feature_map.shape == (2, 64, 3, 3)


class DeformableDetrEncoderLayer(nn.Module):
    """Stands for that of transformers, by its name."""


@pytest.mark.parametrize(
    ("strides", "taken"), [([32], 0), ([8, 16], 1), ([8, 16, 32], 2), ([8, 16, 32, 64], 2), ([8, 16, 32, 64, 128], 2)]
)
def test_of_several_levels_that_of_stride_32_is_read(strides: list[int], taken: int) -> None:
    images = torch.rand(2, 3, 200, 330)
    levels = [torch.rand(2, 5, -(-200 // stride), -(-330 // stride)) for stride in strides]
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], dim=1)
    tap = Tap("model.encoder.layers.1", DeformableDetrEncoderLayer())
    assert torch.equal(TransformersAdapter().feature_map(tap, (tokens, None), images), levels[taken])
    with pytest.raises(CaptureError, match=r"gave a tensor of shape \(2, \d+, 5\) .* tokens of levels of stride 8, 16"):
        TransformersAdapter().feature_map(tap, tokens[:, 1:], images)


def test_other_modules_are_read_by_what_they_give() -> None:
    student = tiny_student(*STUDENTS["segformer"][:3])
    with attach(student, Wide(), tap=["segformer", "decode_head.linear_fuse"], probe=IMAGES) as distiller:
        assert [injector.student_dim for injector in distiller.injectors.values()] == [16, 256]


def test_models_without_a_known_module_are_left_to_the_inspection() -> None:
    config = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)
    assert find_adapter(transformers.BertModel(config)) is None


def test_outputs_beside_the_hidden_state_are_left_aside() -> None:
    student = tiny_student(*STUDENTS["detr"][:3])
    adapter = TransformersAdapter()
    (tap,) = adapter.taps(student)
    tokens = torch.rand(2, 6, 16)
    expected: Tensor = tokens.transpose(1, 2).reshape(2, 16, 2, 3)
    assert torch.equal(adapter.feature_map(tap, (tokens, torch.rand(2, 2, 6, 6)), IMAGES), expected)
