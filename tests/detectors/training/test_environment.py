import json
import os
import platform
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision

import vfmdistill
from detectors.training import environment
from detectors.training.environment import Peak, command, describe, peak_memory


def test_versions_and_hardware_are_those_of_this_process() -> None:
    found = json.loads(json.dumps(describe()))
    versions, hardware = found["versions"], found["hardware"]
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == str(torch.__version__)
    assert versions["torchvision"].partition("+")[0] == torchvision.__version__.partition("+")[0]
    assert versions["vfmdistill"] == vfmdistill.__version__
    assert hardware["threads"] == torch.get_num_threads()
    assert 1 <= hardware["cores"] <= (os.cpu_count() or 1)
    assert len(hardware["gpus"]) == torch.cuda.device_count()
    assert hardware["processes"] == hardware["machines"] == 1
    assert hardware["cpu"]


def test_a_package_that_is_missing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_PACKAGES", ("numpy", "no-such-package"))
    versions = describe()["versions"]
    assert "no-such-package" not in versions
    assert versions["numpy"] == np.__version__


def test_a_run_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    hardware = describe()["hardware"]
    assert (hardware["processes"], hardware["machines"]) == (16, 2)


def test_the_command_can_be_given_to_a_shell_again() -> None:
    code = "from detectors.training.environment import command; print(command())"
    words = [sys.executable, "-c", code, "--data", "my cards", "--output=it's"]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert shlex.split(printed) == words
    assert shlex.split(command()) == sys.orig_argv


def test_the_process_is_measured_where_no_cuda_was_used() -> None:
    code = (
        "import torch; from detectors.training.environment import peak_memory; first = peak_memory(); "
        "kept = torch.ones(200 * 2**20 // 4); second = peak_memory(); del kept; third = peak_memory(); "
        "print(first.of, first.bytes, second.bytes, third.bytes)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kind, *numbers = done.stdout.split()
    first, second, third = (int(number) / 2**20 for number in numbers)
    assert kind == "process"
    assert 50 < first < 5000  # torch alone takes more than that
    assert second - first == pytest.approx(200, rel=0.2)
    assert third > second - 5  # the mark stays, to the kernel's accuracy


def test_cuda_is_measured_where_it_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("is_available", True), ("is_initialized", True), ("max_memory_allocated", 12345)):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda value=value: value)
    assert peak_memory() == Peak(12345, "CUDA")
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda: 0)
    peak = peak_memory()
    assert peak is not None
    assert peak.of == "process"
