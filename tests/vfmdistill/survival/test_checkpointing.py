from __future__ import annotations

from typing import Any

import pytest
import torch
from support.students import step
from support.training_runs import IMAGES as BATCHES
from support.training_runs import Checkpointed, Student, agrees, parts, train
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.utils.checkpoint import checkpoint

from vfmdistill import CaptureError, attach


def test_checkpointing_changes_nothing(plain: dict[str, Any]) -> None:
    student, teacher = parts(Checkpointed)
    assert agrees(train(student, teacher, slice(None)), plain)


def test_checkpointing_of_the_tapped_module(plain: dict[str, Any]) -> None:
    def wrap(network: nn.Module) -> nn.Module:
        apply_activation_checkpointing(network, check_fn=lambda module: isinstance(module, nn.Sequential))
        assert type(network.body).__name__ == "CheckpointWrapper"
        return network

    student, teacher = parts()
    assert agrees(train(student, teacher, slice(None), wrap=wrap), plain)


def test_what_is_computed_again_is_not_captured() -> None:
    student, teacher = parts(Checkpointed)
    calls: list[bool] = []
    student.body.register_forward_hook(lambda module, args, output: calls.append(output.requires_grad))
    with attach(student, teacher, tap="body", probe=BATCHES[0]) as distiller:
        calls.clear()
        step(student, distiller, BATCHES[0])
        assert calls == [True, True]  # in the forward, and again in the backward
        with pytest.raises(CaptureError, match="was not called"):
            distiller.loss(BATCHES[0])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_has_no_gradient_to_give() -> None:
    class Reentrant(Student):
        def forward(self, images: Tensor) -> Tensor:
            features = checkpoint(self.body, self.stem(images), use_reentrant=True)
            logits: Tensor = self.head(torch.relu(features).mean((2, 3)))
            return logits

    student, teacher = parts(Reentrant)
    with attach(student, teacher, tap="body", probe=BATCHES[0]) as distiller:
        student(BATCHES[0])
        with pytest.raises(CaptureError, match="checkpoint with use_reentrant=False"):
            distiller.loss(BATCHES[0])
