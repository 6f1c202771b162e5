from __future__ import annotations

import torch
from support.students import IMAGES, Classifier, Wide
from torch import Tensor

from vfmdistill import Teacher, attach


def test_of_several_forwards_the_last_one_counts(student: Classifier) -> None:
    student.body[2].eval()
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        student(IMAGES.flip(0))
        student(IMAGES)
        both = distiller.loss(IMAGES)
        student(IMAGES)
        torch.testing.assert_close(both, distiller.loss(IMAGES))
        losses = []
        for images in (IMAGES.flip(3), IMAGES):
            student(images)
            losses.append(distiller.loss(images))
        assert losses[0] != losses[1]
        sum(losses).backward()  # type: ignore[union-attr]
        assert student.body[0].weight.grad is not None


def test_of_several_calls_of_the_tap_the_last_one_counts() -> None:
    class Twice(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            super().forward(images.flip(3))
            return super().forward(images)

    torch.manual_seed(1)
    once, teacher = Classifier(), Teacher(Wide())
    twice = Twice()
    twice.load_state_dict(once.state_dict())
    losses = []
    for network in (once, twice):
        network.body[2].eval()
        torch.manual_seed(2)
        with attach(network, teacher, tap="body", modulator=1.0) as distiller:
            network(IMAGES)
            losses.append(distiller.loss(IMAGES))
    torch.testing.assert_close(losses[0], losses[1])
