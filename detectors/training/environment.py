"""Environment: what a run was started with, on what, and how much memory it took."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import distributed

from vfmdistill.version import __version__

from .memory import high_water_mark

# Whatever can change what a run computes or how fast it does.
_PACKAGES = (
    "torch", "torchvision", "accelerate", "timm", "open-clip-torch", "einops", "numpy", "scipy", "pillow", "pydantic",
    "safetensors", "faster-coco-eval", "pycocotools", "triton",
)  # fmt: skip


class Peak(NamedTuple):
    """The most memory that this process held so far, and which kind of memory that was."""

    bytes: int
    of: Literal["CUDA", "process"]
    """"CUDA": allocated by tensors on this process's device. "process": resident, of this process without its
    data-loading workers."""


def peak_memory() -> Peak | None:
    """Return the peak of the CUDA memory if any was used, else of the process's; None where neither can be known."""
    if torch.cuda.is_available() and torch.cuda.is_initialized() and (allocated := torch.cuda.max_memory_allocated()):
        return Peak(allocated, "CUDA")
    peak = high_water_mark()
    return None if peak is None else Peak(peak, "process")


def command() -> str:
    """Return the words that this process was started with, quoted for a shell.

    Of several processes, those of the launcher before them are not known here; they are started alike.
    """
    return shlex.join(sys.orig_argv)


def describe() -> dict[str, Any]:
    """Return versions and hardware as JSON-able values; what cannot be known is None.

    "versions": name → version of Python, of this library and of the packages that it computes with. "hardware": "cpu"
    (its name), "cores" (that this process may use), "threads" (of torch), "memory" (bytes), "gpus" (name and bytes of
    each that this machine shows), "cuda" and "cudnn" (versions), "processes" (of the run), "machines" (that they are
    spread over). "platform": operating system.
    """
    return {
        "versions": {"python": platform.python_version(), "vfmdistill": __version__, **_package_versions()},
        "hardware": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory": _memory(),
            "gpus": _gpus(),
            "cuda": torch.version.cuda if torch.cuda.is_available() else None,
            "cudnn": str(torch.backends.cudnn.version()) if torch.cuda.is_available() else None,
            "processes": distributed.get_world_size() if _distributed() else 1,
            "machines": _machines(),
        },
        "platform": platform.platform(),
    }


def _package_versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**versions, "torch": str(torch.__version__)}  # with its build, +cpu or +cu126


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _gpus() -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        return []
    devices = (torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count()))
    return [{"name": device.name, "memory": device.total_memory} for device in devices]


def _distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _machines() -> int:
    """Return over how many machines the processes are spread, as the launcher says it in the environment."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 0))
    return distributed.get_world_size() // here if here and _distributed() else 1
