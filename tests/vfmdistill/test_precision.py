"""Which precision a device gets."""

from __future__ import annotations

import pytest
import torch

from vfmdistill.teachers.precision import destination, dtype_for


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((6, 1), torch.float32),  # half precision at a sixty-fourth of the speed
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
        ((9, 0), torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_cuda_by_its_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert dtype_for(torch.device("cuda", 1)) == dtype


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu", "meta"])
def test_other_devices_stay_in_float32(device: str) -> None:
    assert dtype_for(torch.device(device)) == torch.float32


def test_the_destination_of_a_move() -> None:
    cpu, meta = torch.device("cpu"), torch.device("meta")
    assert destination(lambda tensor: tensor.to("meta"), cpu) == (meta, None)
    assert destination(lambda tensor: tensor.to("meta", torch.float16), cpu) == (meta, torch.float16)
    assert destination(lambda tensor: tensor.float(), cpu) == (cpu, torch.float32)
    assert destination(lambda tensor: tensor.double(), meta) == (meta, torch.float64)
    assert destination(lambda tensor: tensor.share_memory_(), cpu) == (cpu, None)
    assert destination(lambda tensor: tensor.to(memory_format=torch.preserve_format), meta) == (meta, None)
