from __future__ import annotations

import json
import resource
import sys
import weakref
from typing import Any

import pytest
import torch
from support.students import IMAGES, Classifier, Narrow, Wide, step
from torch import Tensor, nn

from vfmdistill import FixedWeight, GradientModulator, InputError, SemanticInjector, Teacher, WeightsError, attach
from vfmdistill.steps import Steps
from vfmdistill.teaching import Teaching

CPU = torch.device("cpu")
GRID = (4, 6)


class Counting(nn.Module):
    """A teacher that counts its forwards, with features of a size."""

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        self.forwards = 0
        self.conv = nn.Conv2d(3, 10, 8, 8)
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        self.forwards += 1
        return self.size * self.conv(images)


def _two(small: float = 1.0, large: float = 1.0) -> Teaching:
    torch.manual_seed(0)
    teachers = {"small": (Teacher(Counting(small)), 0.5), "large": (Teacher(Counting(large)), 0.5)}
    return Teaching(teachers, "unit", CPU, 1, Steps(list))


def test_a_single_teacher_is_left_as_it_is() -> None:
    teacher = Teacher(Wide())
    teaching = Teaching({"it": (teacher, 1.0)}, "unit", CPU, 1, Steps(list))
    assert torch.equal(teaching.maps(IMAGES, [GRID])["it", GRID], teacher(IMAGES, grid=GRID).map)
    assert torch.equal(teaching.maps_of(IMAGES, GRID)["it"], teacher(IMAGES, grid=GRID).map)


def test_each_grid_is_asked_for_once() -> None:
    teacher = Teacher(Counting())
    before = teacher.network.forwards
    maps = Teaching({"it": (teacher, 1.0)}, "unit", CPU, 1, Steps(list)).maps(IMAGES, [GRID, (2, 3), GRID])
    assert {grid: feature_map.shape[2:] for (_, grid), feature_map in maps.items()} == {GRID: GRID, (2, 3): (2, 3)}
    assert teacher.network.forwards == before + 2


def test_several_teachers_come_in_one_scale() -> None:
    maps = _two(1e-2, 1e3).maps(IMAGES, [GRID])
    variances = [feature_map.var(dim=(0, 2, 3), correction=0).mean().item() for feature_map in maps.values()]
    assert variances == pytest.approx([1, 1], rel=1e-4)


def test_looking_for_pictures_does_not_move_the_scale() -> None:
    teaching = _two(2.0, 3.0)
    teaching.maps(IMAGES, [GRID])
    teaching.settle()
    before = teaching.state_dict()
    teaching.maps_of(100 * IMAGES.clamp(max=0.01), GRID)
    teaching.settle()
    assert teaching.state_dict() == before


def test_no_teacher_drowns_the_other_in_the_squared_error(student: Classifier) -> None:
    torch.manual_seed(0)
    teachers = {Teacher(Counting(1e-2)): 1, Teacher(Counting(1e3)): 1}

    def injector(student_dim: int, teacher_dim: int) -> SemanticInjector:
        return SemanticInjector(student_dim, teacher_dim, objective="mse")

    with attach(student, teachers, tap="body", injector=injector) as distiller:
        step(student, distiller)
        small, large = (value for key, value in distiller.metrics().items() if key.startswith("semantic_loss/"))
        assert 0.2 < small / large < 5


@pytest.mark.parametrize("every", [1, 2, 3])
def test_teachers_look_at_the_first_of_every_k_batches(student: Classifier, every: int) -> None:
    teacher = Counting()
    with attach(student, teacher, tap="body", every=every) as distiller:
        before, losses = teacher.forwards, []
        for _ in range(7):
            student(IMAGES)
            losses.append(distiller.loss(IMAGES))
            losses[-1].backward()  # also where there is nothing to learn
            distiller.observe()
        looked = [index % every == 0 for index in range(7)]
        assert [loss.item() > 0 for loss in losses] == looked
        assert teacher.forwards - before == sum(looked)


@pytest.mark.parametrize("observes", [True, False])
def test_steps_that_are_given_up_leave_nothing_behind(student: Classifier, observes: bool) -> None:
    with attach(student, {Teacher(Counting(2.0)): 1, Teacher(Wide()): 1}, tap="body", every=2) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)
        step(student, distiller)
        optimizer.step()
        optimizer.zero_grad()
        before = distiller.state_dict()["teaching"]
        for _ in range(3):
            for _ in range(3):
                logits = student(IMAGES)
                (logits.logsumexp(1).mean() + distiller.loss(100 * IMAGES.clamp(max=0.01))).backward()
                assert not distiller.looks
            if observes:
                distiller.observe()
            distiller.discard()
            assert distiller.state_dict()["teaching"] == before
        step(student, distiller)
        assert not distiller.looks
        optimizer.step()
        optimizer.zero_grad()
        distiller.discard()  # of a step that failed before its loss: the one before it stays
        step(student, distiller)
        assert distiller.looks


def test_the_balance_of_a_step_that_is_given_up_is_forgotten(student: Classifier) -> None:
    with attach(student, {Teacher(Counting(2.0)): 1, Teacher(Wide()): 1}, tap="body") as distiller:
        step(student, distiller)
        before = distiller.state_dict()["teaching"]
        for observes in (True, False):
            for _ in range(3):
                student(IMAGES)
                distiller.loss(100 * IMAGES.clamp(max=0.01)).backward()
            if observes:
                distiller.observe()
            distiller.discard()
            assert distiller.state_dict()["teaching"] == before


def test_what_is_given_up_is_let_go(student: Classifier) -> None:
    taken: list[weakref.ref[Tensor]] = []
    student.body.register_forward_hook(lambda module, args, output: taken.append(weakref.ref(output)))
    with attach(student, Wide(), tap="body") as distiller:
        student(IMAGES)
        assert taken[-1]() is not None
        distiller.discard()
        assert taken[-1]() is None


def test_skipped_batches_teach_the_modulator_nothing(student: Classifier) -> None:
    modulator = GradientModulator(5.0, 11.0, 1.0, 20.0)
    with attach(student, Wide(), tap="body", every=4, modulator=modulator) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)

        def train() -> None:
            optimizer.zero_grad()
            step(student, distiller)
            optimizer.step()

        train()
        taught = distiller.state_dict()["modulator"]
        for _ in range(3):
            train()
            assert all(p.grad is None or not p.grad.any() for p in distiller.parameters())
            assert distiller.state_dict()["modulator"] == taught
        train()
        assert distiller.state_dict()["modulator"]["share_count"] == 2


@pytest.mark.parametrize("observes", [True, False])
def test_the_parts_of_a_step_look_or_skip_together(student: Classifier, observes: bool) -> None:
    """With observe() at the end of a step, and without it, as is allowed with a fixed λ, by the optimizer's step."""
    modulator = GradientModulator(5.0, 11.0, 1.0, 20.0) if observes else FixedWeight(2.0)
    with attach(student, Wide(), tap="body", every=2, modulator=modulator) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)
        looked = []
        for _ in range(5):
            for part in IMAGES.repeat(2, 1, 1, 1).chunk(2):
                logits = student(part)
                loss = distiller.loss(part)
                assert distiller.looks == (loss.item() > 0)
                (logits.logsumexp(1).mean() + loss).backward()
                looked.append(distiller.looks)
            if observes:
                distiller.observe()
            optimizer.step()
            optimizer.zero_grad()
        assert looked == [True, True, False, False, True, True, False, False, True, True]
        if observes:
            assert distiller.state_dict()["modulator"]["share_count"] == 3


def test_the_turn_is_resumed(student: Classifier) -> None:
    teacher = Teacher(Counting())
    losses: list[list[bool]] = []
    state: Any = None
    for steps in (4, 5):
        with attach(student, teacher, tap="body", every=3) as distiller:
            if state is not None:
                distiller.load_state_dict(state)
            losses.append([])
            for _ in range(steps):
                student(IMAGES)
                loss = distiller.loss(IMAGES)
                losses[-1].append(loss.item() > 0)
                loss.backward()
                distiller.observe()
            state = distiller.state_dict()
    assert losses == [[True, False, False, True], [False, False, True, False, False]]


@pytest.mark.parametrize("fused", [False, True])
def test_several_losses_before_one_backward_are_one_step(student: Classifier, fused: bool) -> None:
    with attach(student, Wide(), tap="body", every=2, modulator=1.0) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3, fused=fused)
        looked = []
        for _ in range(4):
            total = torch.zeros(())
            for images in (IMAGES, IMAGES.flip(3)):
                total = total + student(images).logsumexp(1).mean() + distiller.loss(images)
                looked.append(distiller.looks)
            total.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert looked == [True, True, False, False] * 2
        assert distiller.state_dict()["teaching"]["steps"] == 4


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_every_is_a_whole_number(student: Classifier, every: Any) -> None:
    with pytest.raises(InputError, match=f"every={every}; expected 1"):
        attach(student, Wide(), tap="body", every=every)


def test_states_of_other_teachers() -> None:
    several, single = _two(), Teaching({"it": (Teacher(Wide()), 1.0)}, "unit", CPU, 1, Steps(list))
    again = _two()
    several.maps(IMAGES, [GRID])
    several.next_batch()
    several.settle()
    again.load_state_dict(json.loads(json.dumps(several.state_dict())))
    assert again.state_dict() == several.state_dict()
    for teaching, state in ((several, single.state_dict()), (single, several.state_dict()), (single, {})):
        before = teaching.state_dict()
        with pytest.raises(WeightsError, match="the state of other teachers"):
            teaching.load_state_dict(state)
        assert teaching.state_dict() == before


def _resident() -> int:
    """Return the kilobytes that this process holds in memory now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


def _steps(steps: int, every: int) -> list[int]:
    """Return what is held in memory after each twentieth of so many steps with two teachers, each with its own λ."""
    student = Classifier()
    teachers = {Teacher(Wide()): 1, Teacher(Narrow()): 1}
    with attach(student, teachers, tap=["stem", "body"], every=every) as distiller:
        names = list(distiller.teachers)
    modulator = {name: GradientModulator() for name in names}
    held = []
    with attach(student, teachers, tap=["stem", "body"], every=every, modulator=modulator) as distiller:
        optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], lr=1e-4)
        for number in range(1, steps + 1):
            step(student, distiller)
            optimizer.step()
            optimizer.zero_grad()
            if number % (steps // 20) == 0:
                distiller.update()
                distiller.metrics()
                held.append(_resident())
    return held


_on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@_on_linux
@pytest.mark.parametrize("every", [1, 2])
def test_memory_stays_flat(every: int) -> None:
    held = _steps(400, every)
    assert max(held[4:]) < 1.02 * min(held[4:])


@_on_linux
@pytest.mark.slow
def test_memory_stays_flat_for_10000_steps() -> None:
    held = _steps(10_000, 1)
    print(f"resident memory, MB: {[round(size / 1024, 2) for size in held]}")
    assert max(held) < 1.01 * min(held)
