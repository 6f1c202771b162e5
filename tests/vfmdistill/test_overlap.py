from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support.students import IMAGES, Classifier, Narrow, Wide, hooks, step
from torch import Tensor

from vfmdistill import Distiller, InputError, Teacher, attach
from vfmdistill.overlap import Maps, Overlap, choose_stream


class Recorder:
    """Stands for the side stream: works at once, and says what was asked of it when."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def run(self, work: Callable[[], Maps], images: Tensor) -> Maps:
        self.events.append("run")
        return work()

    def join(self, maps: Maps) -> None:
        self.events.append("join")


@contextmanager
def _attached(student: Classifier, teacher: Any = None, **options: Any) -> Iterator[tuple[Distiller, Recorder]]:
    with attach(student, teacher or Wide(), tap="body", **options) as distiller:
        stream = Recorder()
        distiller._teaching.start_early(student, stream)
        yield distiller, stream


def test_teachers_start_with_the_student_and_are_joined_at_the_loss(student: Classifier) -> None:
    with _attached(student) as (distiller, stream):
        step(student, distiller)
        assert stream.events == []  # the grid was not known yet
        student.head.register_forward_hook(lambda *_: stream.events.append("student"))
        step(student, distiller)
        step(student, distiller)
        assert stream.events == ["run", "student", "join"] * 2
        step(student, distiller, torch.rand(2, 3, 32, 64))
        assert stream.events == ["run", "student", "join"] * 2 + ["student"]  # another size


def test_the_loss_is_the_same(student: Classifier) -> None:
    teachers = {Teacher(Wide()): 2, Teacher(Narrow()): 1}
    losses = []
    for early in (False, True):
        twin = copy.deepcopy(student)
        torch.manual_seed(0)
        with attach(twin, teachers, tap=["stem", "body"]) as distiller:
            if early:
                distiller._teaching.start_early(twin, Recorder())
            torch.manual_seed(1)
            losses.append([step(twin, distiller, IMAGES + offset / 10) for offset in range(3)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("change", ["another tensor", "another content"])
def test_images_that_the_student_did_not_see_are_looked_at_anew(student: Classifier, change: str) -> None:
    with _attached(student, modulator=1.0) as (distiller, stream):
        step(student, distiller)
        images = IMAGES.clone()
        student.eval()
        ((projected, _),) = distiller.aligned_maps(images).values()
        student.train()
        for module in student.modules():
            module.training = module is student  # the loss in training mode, with the statistics of eval mode
        student(images)
        if change == "another tensor":
            images = images.clone()
        images.mul_(0.5)
        loss = distiller.loss(images)
        teacher_map = distiller.teacher(images, grid=(4, 6)).map
        torch.testing.assert_close(loss, 1 - torch.cosine_similarity(projected, teacher_map, dim=1).mean())
        assert stream.events == ["run", "join"]
        step(student, distiller)
        assert stream.events == ["run", "join"]  # and nothing is started early any more


def test_nothing_is_started_for_forwards_that_no_loss_follows(student: Classifier) -> None:
    with _attached(student) as (distiller, stream):
        step(student, distiller)
        student.eval()(IMAGES)
        with torch.no_grad():
            student.train()(IMAGES)
        copy.deepcopy(student)(IMAGES)
        distiller.aligned_maps(IMAGES)
        assert stream.events == []


def test_skipped_batches_start_nothing(student: Classifier) -> None:
    with _attached(student, every=3) as (distiller, stream):
        for _ in range(7):
            step(student, distiller)
        assert stream.events == ["run", "join"] * 2


def test_images_of_another_kind_are_left_to_the_loss(student: Classifier) -> None:
    with _attached(student, input_range="uint8") as (distiller, stream):
        images = (IMAGES * 255).byte()
        for _ in range(2):
            student(IMAGES)
            distiller.loss(images).backward()
            distiller.observe()
        assert stream.events == ["run"]
        assert hooks(student) == 1  # the capture's; nothing is started early any more


def test_a_teacher_that_fails_early_fails_in_the_loss_or_not_at_all(student: Classifier) -> None:
    class Picky(Wide):
        def forward(self, images: Tensor) -> Tensor:
            if images.max() > 1:
                raise ValueError("too bright")
            return super().forward(images)

    with _attached(student, Picky()) as (distiller, stream):
        step(student, distiller)
        student(2 * IMAGES)
        assert distiller.loss(IMAGES).isfinite()
        student(IMAGES)
        with pytest.raises(ValueError, match="too bright"):
            distiller.loss(2 * IMAGES)
        assert stream.events == ["run"]


def test_a_second_forward_of_the_same_batch_starts_nothing_anew(student: Classifier) -> None:
    with _attached(student) as (distiller, stream):
        step(student, distiller)
        student(IMAGES)
        step(student, distiller)
        assert stream.events == ["run", "join"]


def test_what_was_started_is_let_go_with_the_step(student: Classifier) -> None:
    with _attached(student) as (distiller, stream):
        step(student, distiller)
        images = IMAGES.clone()
        student(images)
        held = weakref.ref(images)
        del images
        assert held() is not None
        distiller.discard()
        assert held() is None
        assert stream.events == ["run", "join"]


def test_inference_tensors_start_nothing(student: Classifier) -> None:
    with torch.inference_mode():
        images = torch.rand(2, 3, 64, 96)
    with _attached(student) as (distiller, stream):
        step(student, distiller)
        student.requires_grad_(False)(images)
        assert stream.events == []


def test_detach_takes_the_hook_off(student: Classifier) -> None:
    with _attached(student) as (distiller, _):
        step(student, distiller)
        assert hooks(student) == 2
    assert hooks(student) == 0


def test_lists_and_other_batches_start_nothing(student: Classifier) -> None:
    stream = Recorder()
    overlap = Overlap(student, lambda images: dict, stream)
    for images in ([IMAGES], IMAGES[0], IMAGES[:, :1], None):
        overlap.start(images)
    assert stream.events == []
    overlap.start(IMAGES)
    assert stream.events == ["run"]


def test_only_cuda_has_a_side_stream(student: Classifier) -> None:
    assert choose_stream(None, torch.device("cpu")) is None
    assert choose_stream(False, torch.device("cuda")) is None
    with pytest.raises(InputError, match="overlap=True with a student on cpu; expected a CUDA device"):
        attach(student, Wide(), tap="body", overlap=True)
    assert hooks(student) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_loss_is_the_same_with_and_without() -> None:
    class Slow(Wide):
        def forward(self, images: Tensor) -> Tensor:
            torch.cuda._sleep(20_000_000)  # long enough for the student to be done, and its memory given away
            return super().forward(images)

    losses = []
    for overlap in (False, None):
        torch.manual_seed(0)
        student, teacher = Classifier().cuda(), Teacher(Slow()).cuda()
        with attach(student, teacher, tap="body", overlap=overlap) as distiller:
            torch.manual_seed(1)
            losses.append([])
            for _ in range(8):
                losses[-1].append(step(student, distiller, torch.rand(2, 3, 64, 96, device="cuda")))
                churn = [torch.full((2, 3, 64, 96), torch.nan, device="cuda") for _ in range(4)]
                del churn
            assert hooks(student) == (1 if overlap is False else 2)
    torch.testing.assert_close(losses[0], losses[1])
