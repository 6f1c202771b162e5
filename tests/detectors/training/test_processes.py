"""Training on two processes of one machine (gloo), and in half precision, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny_run


def run(launcher: list[str], **settings: Any) -> None:
    command = [sys.executable, *launcher, tiny_run.__file__, json.dumps(settings, default=str)]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_end_with_the_same_weights_and_weight(toy: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run(torchrun, data=toy, output=tmp_path / "run", dump=tmp_path)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    figures = lines(tmp_path / "run")
    assert [line["epoch"] for line in figures] == [0, 1, 2]
    assert len({line["weight"] for line in figures}) > 1
    assert figures[-1]["AP"] == first["AP"].item()


def test_bf16_computes_in_half_precision_and_keeps_weights_and_losses_in_float32(toy: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        run([], data=toy, output=tmp_path / precision, dump=tmp_path, precision=precision, epochs=1, plain_epochs=0)
        losses[precision] = lines(tmp_path / precision)[0]["loss"]
    tensors = load_file(tmp_path / "0.safetensors")
    assert all(tensor.dtype != torch.bfloat16 for tensor in tensors.values())
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_fp16_without_an_accelerator_is_refused(toy: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        tiny_run.__file__,
        json.dumps({"data": str(toy), "output": str(tmp_path / "run"), "precision": "fp16"}),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "InputError: precision fp16 needs an accelerator" in done.stderr
