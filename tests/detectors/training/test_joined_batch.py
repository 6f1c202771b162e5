"""Two processes do what one does with the joined batch: a whole run, and an evaluation."""

from __future__ import annotations

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

from detectors.data.toy import write_toy_dataset

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(launcher: list[str], program: str, *words: str) -> None:
    done = subprocess.run(
        [sys.executable, *launcher, program, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "shard", [pytest.param(False, id="DDP"), pytest.param(True, id="FSDP2", marks=pytest.mark.slow)]
)
def test_a_run_of_21_steps(toy: Path, tmp_path: Path, shard: bool) -> None:
    """Weights to 1e-5, λ the same to the last bit on both ranks.

    Denoising is off: how many groups of queries it has depends on the images that a process takes together. And AdamW
    is replaced by SGD: it takes a step of the learning rate in the direction of any gradient, be it nothing but the
    rounding error of zero. Maps of 4 × 4 cells keep the batch norms from dividing by next to nothing.
    """
    settings: dict[str, Any] = {
        "data": str(toy), "epochs": 7, "plain_epochs": 2, "dense_until": 3, "num_denoising": 0, "input_size": 128,
        "learning_rate": 3e-4, "backbone_learning_rate": 3e-4, "evaluate_every": 7, "ema_decay": 0.5, "sgd": True,
        "rho": 2.0, "delta": 0.1,
    }  # fmt: skip
    for name, launcher in (("one", []), ("two", TORCHRUN)):
        (tmp_path / name).mkdir()
        words = {**settings, "output": str(tmp_path / name / "run"), "dump": str(tmp_path / name)}
        run(launcher, tiny_run.__file__, json.dumps({**words, "shard": shard and name == "two"}))
    one, first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("one/0", "two/0", "two/1"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    for name, value in one.items():
        if name not in ("AP", "weight") and "running" not in name and value.is_floating_point():
            torch.testing.assert_close(first[name], value, rtol=0, atol=1e-5, msg=name)
    lines = [
        [json.loads(line) for line in (tmp_path / name / "run/metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [line["share"] for line in lines[1]] == pytest.approx([line["share"] for line in lines[0]], rel=5e-3)
    weights = [[line["weight"] for line in run] for run in lines]
    assert weights[1] == pytest.approx(weights[0], rel=1e-2)
    assert len(set(weights[0])) > 1
    moved = max(abs(line["loss_mal"] - lines[0][0]["loss_mal"]) for line in lines[0])
    assert moved > 0.01


def test_an_evaluation_of_seven_images(tmp_path: Path) -> None:
    """Every image is seen once, and every figure is that of one process to the last bit."""
    data = write_toy_dataset(tmp_path / "data", train_images=4, val_images=7, image_size=64)
    results = {}
    for name, launcher in (("one", []), ("two", TORCHRUN)):
        (tmp_path / name).mkdir()
        run(launcher, str(Path(tiny_run.__file__).with_name("noisy_oracle.py")), str(data), str(tmp_path / name))
        results[name] = [json.loads(path.read_text()) for path in sorted((tmp_path / name).glob("*.json"))]
    (alone,) = results["one"]
    assert [rank["figures"] for rank in results["two"]] == [alone["figures"]] * 2
    assert sorted(results["two"][0]["seen"] + results["two"][1]["seen"]) == sorted(alone["seen"])
    assert len(alone["seen"]) == len(set(alone["seen"])) == 7
    assert 0.1 < alone["figures"]["AP"] < 0.9
