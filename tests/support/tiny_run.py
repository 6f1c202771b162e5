"""A training run of seconds: size N on 64 × 64 images, three steps an epoch, with a frozen random teacher.

As a program it does one such run, and may kill itself: tiny_run.py '{"data": …, "output": …, "kill_at": ["step", 5]}'
With "dump" each process writes what it ended with to that folder, under its rank.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import vfmdistill
from detectors.evaluation import CocoEvaluator
from detectors.training import Interrupted, Recipe, assemble, checkpoint, recipe_for, snapshot
from detectors.training import trainer as trainer_module
from detectors.training.step import TrainStep

STEPS = 3  # of an epoch: 13 images in batches of 4


class TinyTeacher(nn.Module):
    """A frozen random network of stride 32."""

    def __init__(self, seed: int = 7, size: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.embed = nn.Conv2d(3, 16, kernel_size=32, stride=32, bias=False)
        self.embed.weight = nn.Parameter(size * torch.randn(16, 3, 32, 32, generator=generator) / 55)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.embed(images)
        return out


def register_tiny_teacher() -> None:
    """Make the teacher known as "tiny", and one with larger features as "tiny2"."""
    spec = vfmdistill.TeacherSpec(
        name="tiny", family="tests", backend="module", model_id="tiny", patch_size=32, embed_dim=16, params=49_152
    )
    vfmdistill.register_teacher(spec, lambda *_: TinyTeacher())
    vfmdistill.register_teacher(spec.model_copy(update={"name": "tiny2"}), lambda *_: TinyTeacher(8, 50.0))


def tiny_recipe(data: Path | str, output: Path | str, **overrides: Any) -> Recipe:
    """Return the recipe; keywords replace its fields."""
    settings: dict[str, Any] = {
        "data": data, "output": output, "teacher": "tiny", "pretrained_backbone": False, "device": "cpu",
        "input_size": 64, "batch_size": 4, "workers": 0, "epochs": 3, "num_queries": 10, "num_denoising": 4,
        "log_every": 2, "rho": 10.0, "delta": 1.0, "plain_epochs": 1, "dry_run": False,
    }  # fmt: skip
    settings |= overrides
    return recipe_for(settings.pop("model", "rtdetrv4_n"), **settings)


def _at(moment: str, count: int, act: Callable[[], None]) -> None:
    """Arrange for something to happen at the n-th step, file, checkpoint, save or evaluated batch."""

    def counted(function: Any, before: bool = False) -> Any:
        calls = 0

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == count and before:
                act()
            result = function(*args, **kwargs)
            if calls == count and not before:
                act()
            return result

        return run

    if moment == "step":
        TrainStep.__call__ = counted(TrainStep.__call__)  # type: ignore[method-assign]
    elif moment == "file":  # a part of a checkpoint is on disk then
        checkpoint.save_file = counted(checkpoint.save_file)
    elif moment == "full":  # nothing more fits on the disk
        checkpoint.save_file = counted(checkpoint.save_file, before=True)
    elif moment == "checkpoint":  # it is complete, but older ones are still there
        snapshot.write_checkpoint = counted(snapshot.write_checkpoint)
    elif moment == "save":  # the epoch's metrics are written, its checkpoints are not
        snapshot.save_epoch = counted(snapshot.save_epoch, before=True)
    elif moment == "batch":  # of an evaluation
        CocoEvaluator.process = counted(CocoEvaluator.process)  # type: ignore[method-assign]
    else:
        raise ValueError(moment)


def _send(number: int, times: int) -> None:
    """Signal this process so many times, each of which is handled before the next: two that wait become one."""
    for _ in range(times):
        os.kill(os.getpid(), number)
        time.sleep(0.1)


def _fill_disk() -> None:
    """Let no file grow beyond 100 kB from here on, as if the disk were full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))


def _sgd(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """Return an optimizer that does not blow up what two ways of rounding make of a gradient that is nearly zero."""
    return torch.optim.SGD([{**group, "initial_lr": group["lr"]} for group in groups], momentum=0.9)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs deaf to it
    settings = json.loads(sys.argv[1])
    if moment := settings.pop("kill_at", None):
        _at(*moment, lambda: os.kill(os.getpid(), signal.SIGKILL))
    if moment := settings.pop("stop_at", None):
        number, times = [*moment[2:], 1][:2]
        _at(*moment[:2], lambda: _send(number, times))
    if count := settings.pop("full_at", None):
        _at("full", count, _fill_disk)
    dump = settings.pop("dump", None)
    if settings.pop("sgd", False):
        trainer_module.build_optimizer = _sgd  # type: ignore[assignment]
    register_tiny_teacher()
    with assemble(tiny_recipe(**settings)) as trainer:
        try:
            trainer.fit()
        except Interrupted as interrupted:
            print(interrupted, file=sys.stderr)
            sys.exit(interrupted.exit_status)
    if dump:
        injectors = trainer.distiller.named_parameters()  # type: ignore[union-attr]
        tensors = {**trainer.engine.full_state(trainer.model), **{k: v.detach() for k, v in injectors}}
        average = trainer.engine.full_state(trainer.average.model)
        tensors |= {f"ema.{key}": value for key, value in average.items()}
        tensors["weight"] = torch.tensor(trainer.distiller.weight, dtype=torch.float64)  # type: ignore[union-attr]
        tensors["AP"] = torch.tensor(trainer.figures["AP"], dtype=torch.float64)
        save_file({k: v.contiguous() for k, v in tensors.items()}, f"{dump}/{trainer.engine.rank}.safetensors")
