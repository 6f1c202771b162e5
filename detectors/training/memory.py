"""Memory: how much a computation takes, and how much there is."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path
from types import TracebackType

import torch

_HIGHEST = "VmHWM"  # of /proc/self/status: most memory that the process has had at once
_CGROUPS = Path("/sys/fs/cgroup")


class PeakMemory:
    """Measures what is computed inside it, as a context manager.

    On a CUDA device that is the most memory that torch held of the device, weights and all. On the CPU it is by how
    much the process's resident memory grew at most. Linux can set its high-water mark back; where that is not allowed
    it is the growth of the mark, too little if it was higher before.

    Args:
        device: where the computation runs.

    Attributes:
        bytes: the peak, after leaving; None on systems and devices that do not tell it.
    """

    def __init__(self, device: torch.device) -> None:
        self.bytes: int | None = None
        self._device = device
        self._before: int | None = None

    def __enter__(self) -> PeakMemory:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._device.type == "cpu":
            _lower_mark()
            self._before = high_water_mark()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_reserved(self._device)
        elif self._before is not None:
            self.bytes = (high_water_mark() or 0) - self._before


def total_memory(device: torch.device) -> int | None:
    """Return the bytes of a CUDA device; None for others."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None


def free_memory() -> int | None:
    """Return how many bytes more this process can take of the machine's memory; None where that cannot be told.

    What Linux says is available, and no more than its control groups (version 2), as of a container or a Slurm job,
    leave.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        group = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    paths = [line.removeprefix("0::/") for line in group if line.startswith("0::/")]
    for path in paths:
        folder = _CGROUPS / path
        for inside in (folder, *folder.parents):
            try:
                most, used = ((inside / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
            except OSError:  # the root has no limit
                continue
            if most.strip() != "max":
                free.append(int(most) - int(used))
    return max(0, min(free)) if free else None


def _lower_mark() -> None:
    """Hand back to the system what was freed, then set the high-water mark to what is left."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's, which would keep much of it otherwise
        if trim is not None:
            trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # man 5 proc: resets the peak resident set size
    except OSError:
        return


def high_water_mark() -> int | None:
    """Return the most bytes that this process was resident with, since it started or the mark was lowered."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(_HIGHEST):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes, on macOS
