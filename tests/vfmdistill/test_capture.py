from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support.students import hooks
from torch import Tensor, nn

from vfmdistill import CaptureError, InputError
from vfmdistill.capture import Capture, probe_outputs, untouched


class Student(nn.Module):
    """A student with everything that a forward can leave behind: statistics, drawn numbers, a counter, a lazy cache."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.Dropout(0.5))
        self.head = nn.Conv2d(4, 2, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.register_buffer("cache", torch.rand(images.shape[-2:]))
        mapped: Tensor = self.head(nn.functional.dropout(self.stem(images), 0.5))
        return mapped


IMAGES = torch.rand(2, 3, 16, 16)


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student()


def test_takes_the_latest_training_output_once(student: Student) -> None:
    capture = Capture(student.stem, lambda: student.training)
    student(IMAGES)
    student(IMAGES[:1])
    student.eval()(IMAGES)
    assert capture.take().shape == (1, 4, 4, 4)
    with pytest.raises(CaptureError, match="not called"):
        capture.take()
    capture.remove()
    capture.remove()
    assert not student.stem._forward_hooks


@pytest.mark.parametrize("case", ["never", "eval", "no_grad", "frozen"])
def test_says_why_nothing_was_captured(student: Student, case: str) -> None:
    capture = Capture(student.stem, lambda: student.training, "stem")
    message = "not called"
    if case == "eval":
        message = "eval mode"
        student.eval()(IMAGES)
    elif case == "no_grad":
        message = "without gradients"
        with torch.no_grad():
            student(IMAGES)
    elif case == "frozen":
        message = "carries no gradient"
        student.stem.requires_grad_(False)
        student(IMAGES)
    with pytest.raises(CaptureError, match=f"tap 'stem' gave nothing.*{message}"):
        capture.take()


@pytest.mark.parametrize(
    "wrap", [lambda x: (x, None), lambda x: [x], lambda x: {"map": x}, lambda x: {"maps": [x.detach(), x]}]
)
def test_looks_for_the_gradient_inside_containers(wrap: Any) -> None:
    class Wraps(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return wrap(images)

    module = Wraps()
    capture = Capture(module, lambda: True)
    module(IMAGES)
    with pytest.raises(CaptureError, match="no gradient"):
        capture.take()
    module(IMAGES.clone().requires_grad_())
    assert type(capture.take()) is type(wrap(IMAGES))


def test_copies_and_pickles_of_the_student_feed_no_one(student: Student) -> None:
    capture = Capture(student.stem, lambda: True)
    student(IMAGES)
    for twin in (copy.deepcopy(student), pickle.loads(pickle.dumps(student))):
        twin(torch.rand(1, 3, 16, 16))
    assert capture.take().shape[0] == 2


@pytest.mark.parametrize("fails", [False, True])
def test_probe_leaves_no_trace(student: Student, fails: bool) -> None:
    student.stem[1].eval()  # a mixture of flags must come back as it was
    twin = copy.deepcopy(student)
    random_state = torch.get_rng_state()
    if fails:
        with pytest.raises(InputError, match=r"shape \(2, 5, 16, 16\).*Pass a batch .* probe="):
            probe_outputs(student, {"stem": student.stem}, torch.rand(2, 5, 16, 16))
        torch.set_rng_state(random_state)
    else:
        outputs = probe_outputs(student, {"stem": student.stem, "never": nn.Identity()}, IMAGES)
        assert outputs.keys() == {"stem"}
        assert not outputs["stem"].requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in student.modules()] == [module.training for module in twin.modules()]
    assert student.state_dict().keys() == twin.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(student.buffers(), twin.buffers(), strict=True))
    assert not any(module._forward_hooks for module in student.modules())


def test_probe_returns_outputs_in_the_order_of_the_forward(student: Student) -> None:
    modules = {name: module for name, module in reversed(list(student.named_modules())) if name}
    assert list(probe_outputs(student, modules, IMAGES)) == ["stem.0", "stem.1", "stem.2", "stem", "head"]


def test_untouched_gives_batch_statistics_back() -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with untouched(student):
        student(torch.randn(2, 3, 4, 4))
        assert not torch.equal(student.state_dict()["1.running_mean"], before["1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_untouched_gives_attributes_back() -> None:
    class Notes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 1)
            self.latest: Tensor | None = None

        def forward(self, images: Tensor) -> Any:
            self.latest, self.size = images, tuple(images.shape)
            self.layer.register_forward_hook(lambda *values: None)
            self.neck, self.scale = nn.Conv2d(4, 4, 1), nn.Parameter(torch.ones(1))
            self.register_buffer("noted", images, persistent=False)
            return self.layer(images)

    student = Notes()
    with untouched(student):
        student(IMAGES)
        assert student.latest is IMAGES
    assert student.latest is None
    assert not hasattr(student, "size")
    assert hooks(student) == 0
    assert list(student._modules) == ["layer"]
    assert [name for name, _ in student.named_parameters()] == ["layer.weight", "layer.bias"]
    assert not student._non_persistent_buffers_set
