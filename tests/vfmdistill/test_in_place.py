from __future__ import annotations

from typing import Any

import pytest
import torch
from support.students import IMAGES, Classifier, Wide
from torch import Tensor, nn

from vfmdistill import CaptureError, attach
from vfmdistill.in_place import changed, cloned, versions_of


class Scaled(Classifier):
    """Scales the tap's output in place, by numbers that it learns."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((12, 1, 1), 3.0))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(self.stem(images))
        maps.mul_(self.scale)
        logits: Tensor = self.head(torch.relu_(maps).mean((2, 3)))
        return logits


def test_the_map_is_what_the_tap_gave_and_not_what_became_of_it() -> None:
    student = Scaled()
    student.body[2] = nn.Identity()
    taken: list[Tensor] = []
    student.body.register_forward_hook(lambda module, args, output: taken.append(output.detach().clone()))
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        student(IMAGES)
        loss = distiller.loss(IMAGES)
        (injector,) = distiller.injectors.values()
        teacher_map = distiller.teacher(IMAGES, grid=(4, 6)).map
        torch.testing.assert_close(loss, injector(taken[-1], teacher_map))
        loss.backward()
    assert student.scale.grad is None
    assert student.head.weight.grad is None
    assert student.body[0].weight.grad.abs().sum() > 0


def test_an_output_that_nothing_overwrites_is_not_copied(student: Classifier) -> None:
    taken: list[Tensor] = []
    student.body.register_forward_hook(lambda module, args, output: taken.append(output))
    with attach(student, Wide(), tap="body") as distiller:
        student(IMAGES)
        (capture,) = distiller._student_maps._captures
        assert capture._output is taken[-1]


def test_what_is_only_overwritten_in_training_is_an_error() -> None:
    class Drops(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            maps = nn.functional.dropout(self.body(self.stem(images)), 0.5, self.training, inplace=True)
            logits: Tensor = self.head(maps.mean((2, 3)))
            return logits

    student = Drops()
    with attach(student, Wide(), tap="body") as distiller:
        student(IMAGES)
        with pytest.raises(
            CaptureError, match=r"'body' gave was changed in place .* not when attached\. Tap the module"
        ):
            distiller.loss(IMAGES)


def test_outputs_of_several_tensors() -> None:
    parts = [torch.zeros(2, requires_grad=True) + number for number in range(3)]
    output: Any = {"a": parts[0], "b": [parts[1], (parts[2], "text")], "c": 3}
    noted = versions_of(output)
    copied = cloned(output)
    assert [tensor is part for (tensor, _), part in zip(noted, parts, strict=True)] == [True] * 3
    assert not changed(noted)
    parts[2].add_(1)
    assert changed(noted)
    assert copied["b"][1][0].tolist() == [2, 2]
    assert copied["b"][1][0].requires_grad
    assert (type(copied["b"][1]), copied["b"][1][1], copied["c"]) == (tuple, "text", 3)
    own = torch.Size([1, 2])
    assert cloned(own) is own
