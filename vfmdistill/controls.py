"""Controls: teachers that must not help, to tell what a real one's semantics are worth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vfmdistill.errors import InputError
from vfmdistill.input_range import InputRange
from vfmdistill.teacher import Teacher, TeacherFeatures


class ShuffledTeacher(Teacher):
    """A teacher whose maps are given to other images of the batch: each image gets that of one half a batch before it.

    Half a batch, because training mixes an image with its neighbour in the batch, whose map would not be another's.
    From batches of four on, no image gets a map that it has a part in.

    All that is left of the teacher is what its maps have in common: their scale, their directions, where things
    usually stand. A student that gains as much from it as from the teacher itself has not gained by semantics.
    Arguments are those of `Teacher`; the name in `spec` begins with ``"shuffled_"``.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.spec = self.spec.model_copy(update={"name": f"shuffled_{self.spec.name}"})

    def forward(self, images: Tensor, grid: tuple[int, int], input_range: InputRange = "unit") -> TeacherFeatures:
        """Return what `Teacher.forward` does, each image's for another one.

        Raises:
            InputError: as `Teacher.forward`, or there is only one image, which could only keep its own.
        """
        if len(images) < 2:
            raise InputError(
                f"{self.spec.name} got a batch of {len(images)}; expected at least 2 images, so that none keeps its "
                "own map. Take larger batches."
            )
        features = super().forward(images, grid, input_range)
        half = len(images) // 2
        summary = None if features.summary is None else features.summary.roll(half, dims=0)
        return TeacherFeatures(features.map.roll(half, dims=0), summary)


def random_teacher(name: str, *, seed: int, **options: Any) -> Teacher:
    """Return a teacher of the catalogue with random weights, which follow from the seed alone.

    What a student gains from it comes from aligning with any fixed function of the image, not from what was learnt on
    other images. The name in `spec` begins with ``"random_"``. The random state of the caller is left alone.

    Args:
        name: as `Teacher` takes it.
        seed: of the weights.
        options: of `Teacher`, but for `pretrained` and `weights`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        teacher = Teacher(name, pretrained=False, **options)
    unlearnt = {"name": f"random_{teacher.spec.name}", "license": "none: random weights", "gated": False}
    teacher.spec = teacher.spec.model_copy(update=unlearnt)
    return teacher
