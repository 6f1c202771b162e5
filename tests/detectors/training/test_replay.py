"""Steps that went bad in one process are run again in another, from their dump alone."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_step import tiny_batch, tiny_step

from detectors.training.bad_steps import BadSteps
from detectors.training.checkpoint import STATE
from detectors.training.replay import main
from detectors.training.step import Batch, TrainStep

ROOT = Path(__file__).parents[3]
# The module itself, in a process where the teacher of the tests has a name
WITH_TEACHER = (
    "import sys; from support.tiny_run import register_tiny_teacher; register_tiny_teacher(); "
    "from detectors.training.replay import main; raise SystemExit(main(sys.argv[1:]))"
)

Poison = Callable[[TrainStep, list[Batch]], None]


def dump_step(folder: Path, poison: Poison | None = None, healthy: int = 0, **settings: Any) -> Path:
    """Do one step, its images, boxes or weights poisoned, behind some healthy ones, and return the dump of it."""
    recipe, step, _ = tiny_step(folder, **settings)
    for number in range(healthy):
        assert step([tiny_batch(seed=10 + number)], number).reason is None
    parts = [tiny_batch(seed=part) for part in range(recipe.accumulate)]
    if poison is not None:
        poison(step, parts)
    modules = [step.model, *([] if step.distiller is None else [step.distiller.injectors])]
    before = [{key: value.clone() for key, value in module.state_dict().items()} for module in modules]
    outcome = step(parts, 7)
    if outcome.reason is None:
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state)
    for module, state in zip(modules, before, strict=True):  # a bad step has left everything as it was
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())
    path = BadSteps(folder, 10).record(
        8, 0, parts, outcome.loss_values(), outcome.reason or "none.", step.model, outcome.rng, recipe,
        distiller=step.distiller, counts=outcome.counts,
    )  # fmt: skip
    assert path is not None
    return path


def replay(path: Path, *options: str, program: tuple[str, ...] = ("-c", WITH_TEACHER)) -> tuple[int, str, str]:
    """Return exit status, output with line breaks removed, and error output."""
    paths = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, *program, str(path), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=path)
    return done.returncode, re.sub(r"\s*\n", " ", done.stdout), done.stderr


def joined(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\s*\n", " ", capsys.readouterr().out)


def spoil_image(step: TrainStep, parts: list[Batch]) -> None:
    parts[-1][0][1, 0, 3, 3] = torch.inf


def spoil_boxes(step: TrainStep, parts: list[Batch]) -> None:
    parts[-1][1][0]["boxes"][0, 2] = torch.nan


@torch.no_grad()
def spoil_scores(step: TrainStep, parts: list[Batch]) -> None:
    step.model.get_parameter("decoder.stages.0.score_head.weight").fill_(3e37)


@torch.no_grad()
def spoil_projector(step: TrainStep, parts: list[Batch]) -> None:
    assert step.distiller is not None
    for parameter in step.distiller.parameters():
        parameter.fill_(1e38)


def test_a_healthy_step_gives_the_same_losses_to_the_last_bit_and_status_0(tmp_path: Path) -> None:
    status, output, errors = replay(dump_step(tmp_path))
    assert (status, errors) == (0, "")
    assert "38 of 38 losses are exactly those of the run" in output
    assert "loss_semantic" in output
    assert output.rstrip().endswith("losses and gradients are finite")
    assert "first not finite" not in output


def test_a_loss_that_overflowed_overflows_again_and_the_module_is_named(tmp_path: Path) -> None:
    path = dump_step(tmp_path, spoil_scores, teacher=None)
    status, output, errors = replay(path, program=("-m", "detectors.training.replay"))
    assert (status, errors) == (1, "")
    assert "37 of 37 losses are exactly those of the run" in output
    assert re.search(r"loss_mal_aux_0 +│ nan +│ nan +│", output)
    assert "first not finite, forward: decoder.stages.0.score_head (Linear): its output" in output
    assert "all that it was given was finite" in output


@pytest.mark.parametrize(
    ("settings", "losses"),
    [({"precision": "bf16"}, 37), ({"accumulate": 2, "batch_size": 4}, 74), ({"num_denoising": 0}, 20)],
    ids=str,
)
def test_the_losses_are_those_of_the_run_in_every_kind_of_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any], losses: int
) -> None:
    path = dump_step(tmp_path, spoil_scores, teacher=None, **settings)
    assert main([str(path)]) == 1
    assert f"{losses} of {losses} losses are exactly those of the run" in capsys.readouterr().out


@pytest.mark.parametrize(("healthy", "losses"), [(0, 38), (1, 37), (2, 38)])
def test_teachers_look_again_at_what_they_looked_at_and_on_the_same_scale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], healthy: int, losses: int
) -> None:
    teaching = {"teacher": "tiny=2,tiny2", "objective": "mse", "teacher_every": 2}
    path = dump_step(tmp_path, spoil_scores, healthy, **teaching)
    assert main([str(path)]) == 1
    assert f"{losses} of {losses} losses are exactly those of the run" in capsys.readouterr().out


def test_a_poisoned_image_is_named_with_the_module_that_met_it_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(dump_step(tmp_path, spoil_image))]) == 1
    output = joined(capsys)
    assert "process 0 of 1: matching costs are not finite, of outputs" in output
    assert "not finite before the step: image 1 of part 0 (id 41): 1 infinite" in output
    assert "first not finite, forward: backbone.stem.stem1.conv (Conv2d): its output (2, 16, 32, 32) holds" in output
    assert "it was given 1 infinite" in output
    assert "bad: matching costs are not finite, of outputs" in output


def test_the_semantic_loss_is_run_again_with_the_teacher_and_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dump_step(tmp_path, spoil_projector)
    assert main([str(path)]) == 1
    output = joined(capsys)
    assert "38 of 38 losses are exactly those of the run" in output
    assert re.search(r"loss_semantic +│ nan +│ nan", output)
    assert "forward: injectors.tiny:encoder/aifi.projector (LinearProjector): its output" in output
    assert main([str(path), "--no-teacher"]) == 0
    output = joined(capsys)
    assert "note: without the teacher: the semantic loss is left out" in output
    assert "37 of 37 losses are exactly those of the run" in output


def test_a_teacher_that_is_gone_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    status, output, errors = replay(dump_step(tmp_path), program=("-m", "detectors.training.replay"))
    assert (status, output) == (2, "")
    assert errors.startswith("error: unknown teacher 'tiny'")
    assert "Name its file with --teacher-weights, or leave it out with --no-teacher." in errors


def test_the_part_that_is_bad_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dump_step(tmp_path, spoil_boxes, accumulate=2, batch_size=4)
    assert main([str(path)]) == 1
    output = joined(capsys)
    assert "not finite before the step: boxes of image 0 of part 1 (id 40): 1 NaN" in output


def test_gradients_alone_can_be_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = dump_step(tmp_path, teacher=None)
    from detectors.losses import criterion

    def zero(losses: torch.Tensor) -> torch.Tensor:
        return losses + (losses.detach() - losses).sqrt()  # plus 0, whose gradient is infinite

    original = criterion.Criterion.forward
    monkeypatch.setattr(
        criterion.Criterion,
        "forward",
        lambda *args, **kwargs: {name: zero(value) for name, value in original(*args, **kwargs).items()},
    )
    assert main([str(path)]) == 1
    output = joined(capsys)
    assert "37 of 37 losses are exactly those of the run" in output
    assert "first not finite, forward" not in output
    assert re.search(
        r"first not finite, backward: decoder(\.\S+)? \(\w+\): the gradient .* of its output holds", output
    )
    assert "parameters with such gradients: " in output
    assert "norm of the gradient: nan" in output
    assert "bad: the norm of the gradient is nan" in output


def test_differences_to_the_run_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = dump_step(tmp_path, teacher=None)
    state = json.loads((path / STATE).read_text())
    state |= {"processes": 4, "device": "cuda", "recipe": {**state["recipe"], "compile": True}}
    (path / STATE).write_text(json.dumps(state))
    assert main([str(path), "--precision", "bf16"]) == 0
    output = joined(capsys)
    for note in (
        "the run computed on cuda: random numbers and last digits are others here",
        "the run computed in fp32",
        "the run's network was compiled: last digits may be others here",
        "batch norms see the images of this process alone",
    ):
        assert f"note: {note}" in output


def test_what_is_no_dump_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "is not a complete checkpoint" in capsys.readouterr().err
