import sys
from pathlib import Path

import pytest
import torch

from detectors.training import memory
from detectors.training.memory import PeakMemory, free_memory, total_memory

CPU = torch.device("cpu")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_the_peak_is_what_was_held_at_once_and_not_what_came_before() -> None:
    torch.ones(2**26)  # 256 MiB that are gone again
    with PeakMemory(CPU) as peak:
        for _ in range(3):
            torch.ones(2**24)  # 64 MiB
    assert peak.bytes == pytest.approx(2**26, rel=0.2)


@linux
def test_the_room_is_what_the_machine_and_the_control_group_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = free_memory()
    assert machine is not None
    assert 2**20 < machine < 2**50
    own = next(
        (line[4:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::/")), None
    )
    if own is None:
        pytest.skip("no control groups of version 2")
    (tmp_path / own).mkdir(parents=True, exist_ok=True)
    (tmp_path / own / "memory.max").write_text("3000000\n")
    (tmp_path / own / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    assert free_memory() == 2_000_000
    (tmp_path / own / "memory.max").write_text("max\n")
    assert free_memory() > 2_000_000


def test_only_a_device_of_its_own_has_a_total() -> None:
    assert total_memory(CPU) is None
