"""What a distiller refuses, and how: each message says what was given, what is expected and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.student_zoo import ZOO
from support.students import IMAGES, Classifier, Wide, hooks, step
from torch import Tensor, nn

import vfmdistill
from vfmdistill import CaptureError, Distiller, DistillError, InputError, Tap, Teacher, attach

LARGE = torch.rand(2, 3, 128, 256, generator=torch.Generator().manual_seed(0))


def _never_ran(student: Classifier, distiller: Distiller) -> Tensor:
    student(IMAGES)
    distiller.loss(IMAGES)
    return distiller.loss(IMAGES)


def _without_gradients(student: Classifier, distiller: Distiller) -> Tensor:
    with torch.no_grad():
        student(IMAGES)
    return distiller.loss(IMAGES)


def _frozen_up_to_the_tap(student: Classifier, distiller: Distiller) -> Tensor:
    student.stem.requires_grad_(False)
    student.body.requires_grad_(False)
    student(IMAGES)
    return distiller.loss(IMAGES)


def _ran_in_eval_mode(student: Classifier, distiller: Distiller) -> Tensor:
    student.eval()(IMAGES)
    student.train()
    return distiller.loss(IMAGES)


def _another_batch(student: Classifier, distiller: Distiller) -> Tensor:
    student(IMAGES)
    return distiller.loss(IMAGES[:1])


def _turned_images(student: Classifier, distiller: Distiller) -> Tensor:
    student(LARGE)
    return distiller.loss(LARGE.mT)


def _more_channels(student: Classifier, distiller: Distiller) -> Tensor:
    student.body = _wider(student.body)
    student.head = nn.Linear(20, 4)
    student(IMAGES)
    return distiller.loss(IMAGES)


def _another_tap(student: Classifier, distiller: Distiller) -> Tensor:
    student.body = nn.Sequential(nn.Conv2d(8, 12, 4, 4))
    student(IMAGES)
    return distiller.loss(IMAGES)


def _teacher_moved(student: Classifier, distiller: Distiller) -> Tensor:
    distiller.teacher.to("meta")
    student(IMAGES)
    return distiller.loss(IMAGES)


def _student_moved(student: Classifier, distiller: Distiller) -> Tensor:
    student.to("meta")(IMAGES.to("meta"))
    return distiller.loss(IMAGES)


def _student_and_images_moved(student: Classifier, distiller: Distiller) -> Tensor:
    student.to("meta")(IMAGES.to("meta"))
    return distiller.loss(IMAGES.to("meta"))


def _wider(body: nn.Sequential) -> nn.Sequential:
    """Change the layers of a module, which stays the same module."""
    body[0], body[1] = nn.Conv2d(8, 20, 4, 4), nn.BatchNorm2d(20)
    return body


REFUSED: dict[str, tuple[Callable[[Classifier, Distiller], Tensor], type[Exception], str]] = {
    "never ran": (
        _never_ran, CaptureError,
        r"tap 'body' gave nothing since the last loss: its module was not called\. Run the student on the batch before",
    ),
    "ran without gradients": (
        _without_gradients, CaptureError,
        r"tap 'body' gave nothing .* ran without gradients .*\. Run it with gradients",
    ),
    "frozen up to the tap": (
        _frozen_up_to_the_tap, CaptureError,
        r"tap 'body' gave nothing .* carries no gradient\. Nothing up to it is trained: unfreeze it, or tap a later",
    ),
    "ran in eval mode": (
        _ran_in_eval_mode, CaptureError,
        r"tap 'body' gave nothing .* ran in eval mode\. Call student\.train\(\) before the training forward",
    ),
    "images of another batch": (
        _another_batch, CaptureError,
        r"\(2, 12, 4, 6\) for images \(1, 3, 64, 96\); expected \(1, C, h, w\)\. Pass the batch of the student's",
    ),
    "images of another aspect ratio": (
        _turned_images, CaptureError,
        r"\(2, 12, 8, 16\) for images \(2, 3, 256, 128\); expected .* aspect ratio.* batch of its latest forward",
    ),
    "a tap of other channels": (
        _more_channels, CaptureError,
        r"tap 'body' .*\(2, 20, 4, 6\).*; expected .*12.*\. [^.]*[Aa]ttach again",
    ),
    "a tap that is another module": (
        _another_tap, CaptureError, r"tap 'body' .* another module .*[Aa]ttach again",
    ),
    "a teacher that was moved": (
        _teacher_moved, InputError,
        r"teacher 'Wide' is on meta, the images are on cpu\. Move it: teacher\.to\(images\.device\)",
    ),
    "a student that was moved": (
        _student_moved, CaptureError,
        r"tap 'body' gave a map on meta, but the student was on cpu when attached\. Attach after moving it",
    ),
    "a student and images that were moved": (
        _student_and_images_moved, InputError,
        r"images on meta, but the student was on cpu when attached\. .* attach after moving it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_loss_that_cannot_be_had(student: Classifier, name: str) -> None:
    ask, error, message = REFUSED[name]
    with attach(student, Teacher(Wide()), tap="body", modulator=1.0) as distiller, pytest.raises(error, match=message):
        ask(student, distiller)


@pytest.mark.parametrize(("name", "channels"), [("timm, resnet", 96), ("ours, deim", 16)])
def test_images_of_another_aspect_ratio_than_a_known_student_saw(name: str, channels: int) -> None:
    row = ZOO[name]
    student = row.build().train()
    message = (
        rf"\(2, {channels}, 4, 8\) for images \(2, 3, 256, 128\); expected .* aspect ratio.* of its latest forward"
    )
    with attach(student, Teacher(Wide()), modulator=1.0) as distiller:
        row.loss(student, LARGE)
        with pytest.raises(CaptureError, match=message):
            distiller.loss(LARGE.mT)


@pytest.mark.parametrize("name", ["never ran", "ran without gradients", "images of another batch"])
def test_a_refused_loss_is_had_in_the_next_step(student: Classifier, name: str) -> None:
    ask, error, _ = REFUSED[name]
    with attach(student, Teacher(Wide()), tap="body", modulator=1.0) as distiller:
        with pytest.raises(error):
            ask(student, distiller)
        student(IMAGES)
        distiller.loss(IMAGES).backward()
        distiller.observe()
        assert distiller.update().share is not None


def test_a_share_without_gradients(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        distiller.observe()  # nothing was computed: nothing is counted
        assert distiller.update().reason == "no_observation"
        student(IMAGES)
        loss = distiller.loss(IMAGES)
        message = r"found no gradient.*after loss\.backward\(\), before .* zero_grad\(\); or distiller\.discard\(\)"
        with pytest.raises(DistillError, match=message):
            distiller.observe()
        loss.backward()
        distiller.observe()
        for parameter in [*student.parameters(), *distiller.parameters()]:
            parameter.grad = None
        student(IMAGES)
        distiller.loss(IMAGES)
        with pytest.raises(DistillError, match=message):
            distiller.observe()
        distiller.discard()
        distiller.observe()


def test_a_loss_without_gradients(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        student(IMAGES)
        with torch.no_grad(), pytest.raises(CaptureError, match=r"loss\(\) in no_grad .*Call it outside"):
            distiller.loss(IMAGES)
        assert distiller.loss(IMAGES).requires_grad


def test_injectors_that_no_optimizer_moves(student: Classifier) -> None:
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
        step(student, distiller)
        optimizer.step()
        with pytest.warns(UserWarning, match=r"the injectors, whose gradients pile up .*distiller\.parameters\(\) too"):
            step(student, distiller)
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            step(student, distiller)


@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_gradients_of_every_kind_are_counted(kind: str) -> None:
    class Odd(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.odd = nn.Embedding(3, 4, sparse=True) if kind == "sparse" else nn.Linear(1, 4, dtype=torch.complex64)

        def forward(self, images: Tensor) -> Tensor:
            index = torch.tensor([0, 0, 2]) if kind == "sparse" else torch.ones(1, dtype=torch.complex64)
            return super().forward(images) + self.odd(index).abs().sum()

    with attach(Odd(), Wide(), tap="body", modulator=1.0) as distiller:
        step(distiller.student, distiller)
        gradient = distiller.student.odd.weight.grad
        norms = [p.grad.to_dense().abs().sum() for p in distiller.student.parameters() if p.grad is not None]
        norms += [p.grad.abs().sum() for p in distiller.parameters() if p.grad is not None]
        tap = sum(p.grad.abs().sum() for p in distiller.student.body.parameters())
        assert gradient is not None
        assert gradient.to_dense().abs().sum() > 0
        assert distiller.metrics()["share"] == pytest.approx((100 * tap / sum(norms)).item(), rel=1e-5)


def _lazy() -> nn.Module:
    student = Classifier()
    student.head = nn.LazyLinear(4)
    return student


def _in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return Classifier()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (_lazy, {}, "take their shape from the first batch. Run it on one first"),
        (lambda: Classifier().to("meta"), {}, "on the meta device; expected one with values"),
        (_in_inference_mode, {}, "in inference mode, which leaves no gradients"),
        (Classifier, {"probe": {"images": IMAGES}}, "probe: a dict; expected a batch"),
        (Classifier, {"probe": IMAGES[0]}, "probe: shape .*; expected a batch"),
        (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), {}, "a ScriptModule, .*script it after training"),
        (Classifier, {"tap": 3}, "tap: a int; expected a module path, several"),
    ],
)
def test_what_cannot_be_attached_to(build: Callable[[], nn.Module], arguments: dict[str, Any], message: str) -> None:
    student = build()
    own = hooks(student)  # lazy layers have some
    with pytest.raises(InputError, match=message):
        attach(student, Wide(), **{"tap": "body", **arguments})
    assert hooks(student) == own
    if arguments.keys() <= {"probe"} and not isinstance(arguments.get("probe"), Tensor):
        with pytest.raises(InputError, match=message):
            vfmdistill.inspect(student, **arguments)


def test_a_tap_that_is_frozen_later(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        student.body.requires_grad_(False)
        student(IMAGES)
        distiller.loss(IMAGES).backward()
        with pytest.raises(DistillError, match=r"nothing is trained any more in 'body'.*Attach again with a later tap"):
            distiller.observe()
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        step(student, distiller)
        assert distiller.metrics()["share"] == 0


def test_inspect_leaves_to_an_adapter_what_it_says(student: Classifier) -> None:
    class Knows:
        def taps(self, student: nn.Module) -> list[Tap]:
            raise InputError("attach to its body")

        def feature_map(self, tap: Tap, output: Tensor, images: Tensor) -> Tensor:
            return output

    student.taps, student.feature_map = Knows().taps, Knows().feature_map  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"^attach to its body$"):
        vfmdistill.inspect(student)
