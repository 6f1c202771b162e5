from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.students import IMAGES, Classifier, Wide, step
from support.training_runs import agrees, parts, train

from vfmdistill import attach, gradient_share


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_share_does_not_depend_on_the_scale(student: Classifier, dtype: torch.dtype) -> None:
    for module in (student.stem[1], student.body[1], student.body[2]):
        module.eval()
    shares = []
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        for scale in (1.0, 2.0**6):
            student.zero_grad()
            distiller.injectors.zero_grad()
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            with torch.autocast("cpu", dtype=dtype):
                loss = student(IMAGES).float().logsumexp(1).mean() + distiller.loss(IMAGES)
            assert loss.dtype == torch.float32
            scaler.scale(loss).backward()
            distiller.observe()
            shares.append(distiller.metrics()["share"])
    assert shares[0] == pytest.approx(shares[1], rel=1e-2 if dtype == torch.float16 else 1e-6)
    assert 0 < shares[0] < 100


def test_an_overflow_that_the_scaler_finds_teaches_nothing(student: Classifier) -> None:
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        before = copy.deepcopy(student.state_dict())
        for overflows in (True, False):
            optimizer.zero_grad()
            loss = student(IMAGES).logsumexp(1).mean() + distiller.loss(IMAGES)
            scaler.scale(loss * (1e38 if overflows else 1.0)).backward()
            distiller.observe()
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(before["head.weight"], student.head.weight) == overflows
        assert distiller.state_dict()["modulator"]["share_count"] == 1
        assert distiller.update().share == pytest.approx(distiller.metrics()["share"])


def test_channels_last(plain: dict[str, Any]) -> None:
    student, teacher = parts()
    student.to(memory_format=torch.channels_last)
    assert agrees(train(student, teacher, slice(None)), plain)
    assert student.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_frozen_layers_stay_and_do_not_count(student: Classifier) -> None:
    student.stem.requires_grad_(False)
    stem = copy.deepcopy(student.stem.state_dict())
    with attach(student, Wide(), tap="body") as distiller:
        optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], lr=1e-3)
        step(student, distiller)
        trained = [p for p in [*student.parameters(), *distiller.parameters()] if p.requires_grad]
        expected = gradient_share(student.body.parameters(), trained)
        assert distiller.metrics()["share"] == pytest.approx(expected.item())
        optimizer.step()
        assert all(torch.equal(stem[name], p) for name, p in student.stem.named_parameters())
        student.stem.requires_grad_(True)  # thawed in the middle
        step(student, distiller)
        assert student.stem[0].weight.grad is not None
    assert all(parameter.requires_grad for parameter in student.parameters())
