"""Training on two processes of one machine (gloo), with DDP and with FSDP2, and in half precision."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny_run, two_processes
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from detectors.training import assemble

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
SHARDS = hasattr(torch.cpu.Stream, "record_event")  # this torch shards on the CPU
KINDS = ["", pytest.param("-sharded", marks=pytest.mark.skipif(not SHARDS, reason="this torch shards on GPUs only"))]
both = pytest.mark.parametrize("kind", KINDS, ids=["DDP", "FSDP2"])


def launch(*words: str) -> None:
    """Run a program in two processes; it must end well, and soon."""
    command = [sys.executable, *TORCHRUN, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            output, _ = process.communicate(timeout=600)
        except subprocess.TimeoutExpired:
            process.terminate()  # not kill(): torchrun has to end the processes that it started
            raise
    assert process.returncode == 0, output


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run every scenario in two processes; return the folder of what they found."""
    folder = tmp_path_factory.mktemp("two")
    scenarios = ["agreement", "norms", *two_processes.SPLIT]
    if SHARDS:
        scenarios += ["overflow-sharded", *(f"{name}-sharded" for name in two_processes.SPLIT)]
    launch(two_processes.__file__, str(folder), *scenarios)
    return folder


def ranks(found: Path, scenario: str) -> list[dict[str, Tensor]]:
    return [load_file(found / f"{scenario}_{rank}.safetensors") for rank in range(2)]


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours if ours[name].numel())


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    return two_processes.loop()


@both
def test_twenty_steps_end_as_those_of_one_process_with_the_joined_batch(
    found: Path, alone: dict[str, Tensor], kind: str
) -> None:
    """In float64: in float32 twenty steps at this rate amplify rounding to 1e-3, whichever way it comes about."""
    first, second = ranks(found, "loop" + kind)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert largest_difference(first, alone) < 1e-9
    assert alone["moved"].median() > 1e-3


@both
def test_parts_of_a_batch_add_up_to_it(found: Path, kind: str) -> None:
    first, second = ranks(found, "parts" + kind)
    assert largest_difference(first, second) == 0
    one = two_processes.parts()
    assert all(first.pop(name).abs().sum() == 0 for name in first.keys() - one.keys())  # of what played no part
    assert largest_difference(first, one) < 1e-12
    gradients = [value for name, value in one.items() if name.startswith("whole.")]
    assert one["norm"] == pytest.approx(torch.cat([value.flatten() for value in gradients]).norm().item())
    clipped = torch.cat([value.flatten() for name, value in first.items() if name.startswith("clipped.")])
    assert clipped.norm() == pytest.approx(0.01, rel=1e-4)


@both
def test_a_process_without_boxes_waits_for_none(found: Path, kind: str) -> None:
    first, second = ranks(found, "no_boxes" + kind)
    assert largest_difference(first, second) == 0
    assert first["decoder.denoising_embedding.weight"].abs().sum() > 0
    assert largest_difference(first, ranks(found, "no_boxes")[0]) < 1e-12


@both
def test_what_was_saved_goes_on_as_if_it_had_not_been(found: Path, kind: str) -> None:
    for rank in ranks(found, "resumed" + kind):
        assert rank["different"] == 0
        assert rank["moved"] > 300
        assert rank["held"] / rank["all"] == pytest.approx(0.5 if kind else 1, abs=0.01)


@both
def test_an_averaged_model_runs_in_each_process_by_itself(found: Path, kind: str) -> None:
    for rank in ranks(found, "averaged" + kind):
        assert torch.equal(rank["inside"], rank["plain"])


@pytest.mark.skipif(not SHARDS, reason="this torch shards on GPUs only")
def test_a_shard_that_overflows_in_one_process_stops_the_step_in_both(found: Path) -> None:
    for rank in ranks(found, "overflow-sharded"):
        assert rank["moved"].tolist() == [False, True]
        assert rank["scales"].tolist() == [512, 512]


def test_the_processes_agree(found: Path) -> None:
    first, second = ranks(found, "agreement")
    assert first["votes"].tolist() == second["votes"].tolist() == [True, False, True]
    assert first["mean"].tolist() == second["mean"].tolist() == [1, 1]
    assert torch.equal(first["weight"], second["weight"])


@pytest.mark.parametrize("name", ["torch", "timm", "mean"])
def test_batch_norms_see_the_images_of_both_processes(found: Path, name: str) -> None:
    """Images of other number and size in each: all pixels of both, side by side, are what they have to be equal to."""
    norm = {"timm": BatchNormAct2d(5), "mean": nn.BatchNorm2d(5, momentum=None)}.get(name, nn.BatchNorm2d(5))
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(3))
    maps, gradients = zip(*(two_processes.batch_norm(rank) for rank in range(2)), strict=True)

    def pixels(maps: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
        return torch.cat([part.transpose(0, 1).flatten(1) for part in maps], dim=1)[None, :, None]

    joined = pixels(maps).requires_grad_()
    for _ in range(2):
        out = norm(joined)
    out.backward(pixels(gradients))
    both = [{key.removeprefix(f"{name}."): value for key, value in rank.items()} for rank in ranks(found, "norms")]
    assert joined.grad is not None
    torch.testing.assert_close(pixels([rank["out"] for rank in both]), out.detach())
    torch.testing.assert_close(pixels([rank["gradient"] for rank in both]), joined.grad)
    torch.testing.assert_close(sum(rank["by_weight"] for rank in both), norm.weight.grad)
    torch.testing.assert_close(sum(rank["by_bias"] for rank in both), norm.bias.grad)
    for rank in both:
        for key, value in norm.state_dict().items():
            torch.testing.assert_close(rank[f"0.{key}"], value)
    norm.eval()
    torch.testing.assert_close(pixels([rank["eval"] for rank in both]), norm(joined).detach())


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_end_with_the_same_weights_and_weight(toy: Path, tmp_path: Path) -> None:
    settings = {"data": str(toy), "output": str(tmp_path / "run"), "dump": str(tmp_path)}
    launch(tiny_run.__file__, json.dumps(settings))
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    figures = lines(tmp_path / "run")
    assert [line["epoch"] for line in figures] == [0, 1, 2]
    assert len({line["weight"] for line in figures}) > 1
    assert figures[-1]["AP"] == first["AP"].item()


def test_bf16_computes_in_half_precision_and_keeps_weights_and_losses_in_float32(toy: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        recipe = tiny_run.tiny_recipe(toy, tmp_path / precision, precision=precision, epochs=1, plain_epochs=0)
        with assemble(recipe) as trainer:
            losses[precision] = trainer.fit()["loss"]
            tensors = [*trainer.model.state_dict().values(), *trainer.average.model.state_dict().values()]
            assert all(tensor.dtype != torch.bfloat16 for tensor in tensors)
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
