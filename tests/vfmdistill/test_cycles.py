"""Attaching and detaching over and over leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
ROOT = SUPPORT.parents[1]


@pytest.mark.parametrize("cycles", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_nothing_piles_up(cycles: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{SUPPORT.parent}"}
    program = [sys.executable, str(SUPPORT / "cycles.py"), str(cycles)]
    ran = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    before, after = json.loads(ran.stdout)
    counted = ["tensors", "distillers", "hooks", "threads", "native_threads"]
    assert [after[kind] for kind in counted] == [before[kind] for kind in counted]
    assert before["distillers"] == before["hooks"] == 0
    # Anything kept from each cycle, be it an entry of a dict, takes more than this.
    assert after["traced"] - before["traced"] < 50_000 + 32 * cycles
    assert after["traced_ours"] - before["traced_ours"] < 20_000
    if before["resident"] is not None:
        assert after["resident"] < 1.01 * before["resident"]
