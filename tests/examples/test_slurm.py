"""The Slurm file, run by bash with stand-ins for Slurm's programs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "train.sbatch"
BASH = shutil.which("bash")
pytestmark = pytest.mark.skipif(BASH is None, reason="needs bash")

# Each writes down how it was called; srun waits for a signal if it is told to.
PROGRAMS = {
    "scontrol": 'echo "scontrol $*" >> "$CALLS"; [[ $1 == show ]] && printf "alpha\\nbeta\\n" || true',
    "srun": 'trap \'echo "srun got TERM" >> "$CALLS"; exit 143\' TERM\n'
    'echo "srun $*" >> "$CALLS"; [[ -z $LASTS ]] || while true; do sleep 0.05; done; exit "$STATUS"',
}


def start(folder: Path, *, lasts: bool, status: int = 0) -> subprocess.Popen[bytes]:
    programs = folder / "programs"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!{BASH}\n{text}\n")
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}", "CALLS": str(folder / "calls"), "LASTS": "yes" if lasts else "",
        "STATUS": str(status), "SLURM_JOB_ID": "123456", "SLURM_JOB_NODELIST": "[alpha,beta]",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "64",
    }  # fmt: skip
    return subprocess.Popen([str(BASH), str(SCRIPT), "runs/one", "--model", "deim_n"], cwd=folder, env=environment)


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_bash_understands_it() -> None:
    assert subprocess.run([str(BASH), "-n", str(SCRIPT)], check=False).returncode == 0


@pytest.mark.parametrize("status", [0, 3])
def test_a_run_that_ends_by_itself_is_not_queued_again(tmp_path: Path, status: int) -> None:
    assert start(tmp_path, lasts=False, status=status).wait(timeout=30) == status
    hosts, srun = calls(tmp_path)
    assert hosts == "scontrol show hostnames [alpha,beta]"
    assert "--nnodes=2 --nproc-per-node=gpu --rdzv-backend=c10d" in srun
    assert "--rdzv-endpoint=alpha:23456 " in srun
    assert srun.endswith("examples/train_rtdetrv4.py --output runs/one --resume --model deim_n")
    assert (tmp_path / "runs" / "one").is_dir()


def test_a_run_that_is_told_to_stop_saves_and_is_queued_again(tmp_path: Path) -> None:
    job = start(tmp_path, lasts=True)
    deadline = time.monotonic() + 30
    while len(calls(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 143
    assert calls(tmp_path)[2:] == ["srun got TERM", "scontrol requeue 123456"]


def test_without_a_folder_it_says_what_to_give(tmp_path: Path) -> None:
    done = subprocess.run([str(BASH), str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "give the folder of the run" in done.stderr
