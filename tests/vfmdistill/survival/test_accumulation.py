from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.students import step
from support.training_runs import IMAGES as BATCHES
from support.training_runs import agrees, parts, train

from vfmdistill import GradientModulator, Teacher, attach


@pytest.mark.parametrize(("pieces", "observes"), [(2, "each"), (2, "last"), (4, "each")])
def test_accumulated_steps_have_the_share_of_whole_ones(pieces: int, observes: str, plain: dict[str, Any]) -> None:
    student, teacher = parts()
    assert agrees(train(student, teacher, slice(None), pieces=pieces, observes=observes), plain)


def test_a_backward_without_a_loss_of_its_own_counts_too() -> None:
    shares = []
    for observes in ((False, True), (True, True)):
        student, teacher = parts()
        torch.manual_seed(0)
        with attach(student, teacher, tap="body", modulator=1.0, probe=BATCHES[0]) as distiller:
            (student(BATCHES[0]).logsumexp(1).mean() + distiller.loss(BATCHES[0])).backward()
            if observes[0]:
                distiller.observe()
            (100 * student(BATCHES[1]).logsumexp(1).mean()).backward()
            distiller.observe()
            shares.append(distiller.update().share)
    assert shares[0] == pytest.approx(shares[1], rel=1e-6)


def test_each_teacher_s_part_is_that_of_the_whole_step() -> None:
    shares = []
    for often in (True, False):
        student, teacher = parts()
        torch.manual_seed(0)
        teachers = {Teacher(teacher): 3, Teacher(copy.deepcopy(teacher)): 1}
        modulators = {name: GradientModulator(5.0, 11.0, 1.0) for name in ("Conv2d", "Conv2d-2")}
        with attach(student, teachers, tap="body", modulator=modulators, probe=BATCHES[0]) as distiller:
            optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)
            for images in BATCHES:
                optimizer.zero_grad()
                for number, piece in enumerate(images.chunk(2)):
                    loss = student(piece).logsumexp(1).mean() + distiller.loss(piece)
                    ((number + 1) * loss).backward()
                    if often or number:
                        distiller.observe()
                optimizer.step()
            shares.append({name: update.share for name, update in distiller.update().teachers.items()})
    assert shares[0] == pytest.approx(shares[1], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "fused AdamW", "foreach AdamW"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_end_of_a_step_shows_with_any_optimizer(optimizer: str, set_to_none: bool) -> None:
    student, teacher = parts()
    with attach(student, teacher, tap="body", modulator=1.0, probe=BATCHES[0]) as distiller:
        parameters = [*student.parameters(), *distiller.parameters()]
        kind: Any = torch.optim.SGD if optimizer == "SGD" else torch.optim.AdamW
        options = {} if optimizer in ("SGD", "AdamW") else {optimizer.split()[0]: True}
        moves = kind(parameters, lr=1e-3, **options)
        shares = []
        for images in BATCHES:
            moves.zero_grad(set_to_none=set_to_none)
            for piece in images.chunk(2):
                step(student, distiller, piece)
            shares.append(distiller.metrics()["share"])
            moves.step()
        state = distiller.state_dict()["modulator"]
        assert state["share_count"] == len(BATCHES)
        assert distiller.update().share == pytest.approx(sum(shares) / len(shares))


@pytest.mark.parametrize("given_up", [0, 1, 2])
def test_a_step_that_is_given_up_does_not_count(given_up: int) -> None:
    student, teacher = parts()
    with attach(student, teacher, tap="body", modulator=1.0, probe=BATCHES[0]) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)
        shares = []
        for number, images in enumerate(BATCHES):
            optimizer.zero_grad()
            step(student, distiller, images)
            if number == given_up:
                distiller.discard()
                continue
            shares.append(distiller.metrics()["share"])
            optimizer.step()
        assert distiller.state_dict()["modulator"]["share_count"] == 2
        assert distiller.update().share == pytest.approx(sum(shares) / 2)
