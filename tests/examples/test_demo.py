"""What the demonstration promises, on the whole of it: minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_rtdetrv4.py"


@pytest.mark.slow
def test_the_demonstration_learns(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(EXAMPLE), "--output", str(tmp_path)], check=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["AP50"] >= 0.3
    assert lines[-1]["semantic_loss"] <= lines[0]["semantic_loss"] * 2 / 3
    assert len({line["weight"] for line in lines}) > 1
