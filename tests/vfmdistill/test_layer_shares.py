from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import distributed, nn
from torch.overrides import TorchFunctionMode

from vfmdistill import GradientModulator, InputError, gradient_share
from vfmdistill.layer_shares import layer_shares

WORLD = 2
SHARDS = hasattr(torch.cpu.Stream, "record_event")  # this torch shards on the CPU


class Student(nn.Module):
    """With L1 gradient norms of 8 (stem), 20 (body), 6 (head) and 6 (scale): 40 in all."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(2))
        self.stem = nn.Linear(2, 2, bias=False)
        self.body = nn.Sequential(nn.Linear(2, 3), nn.Linear(1, 2, bias=False), nn.Linear(1, 1))
        self.head = nn.Linear(2, 3, bias=False)
        self.body[2].requires_grad_(False)
        for parameter, norm in (
            (self.scale, 6), (self.stem.weight, 8), (self.body[0].weight, 12), (self.body[0].bias, 3),
            (self.body[1].weight, 5), (self.body[2].weight, 99), (self.head.weight, 6),
        ):  # fmt: skip
            gradient = torch.full_like(parameter, norm / parameter.numel())
            gradient.view(-1)[::2] *= -1
            parameter.grad = gradient


def test_shares_by_group_in_the_order_of_the_parameters() -> None:
    found = layer_shares(Student())
    assert found == pytest.approx({"scale": 15, "stem": 20, "body": 50, "head": 15})
    assert list(found) == ["scale", "stem", "body", "head"]


def test_deeper_groups() -> None:
    deeper = {"scale": 15, "stem.weight": 20, "body.0": 37.5, "body.1": 12.5, "head.weight": 15}
    assert layer_shares(Student(), depth=2) == pytest.approx(deeper)
    assert layer_shares(Student(), depth=9)["body.0.bias"] == pytest.approx(7.5)
    with pytest.raises(InputError, match="depth=0; expected 1 or more"):
        layer_shares(Student(), depth=0)


def test_extra_parameters_are_a_group_of_their_own() -> None:
    projector = nn.Parameter(torch.zeros(4))
    projector.grad = torch.full((4,), -10.0)
    frozen = nn.Parameter(torch.zeros(1), requires_grad=False)
    found = layer_shares(Student(), extra={"injectors": iter([projector, frozen, projector])})
    assert found == pytest.approx({"scale": 7.5, "stem": 10, "body": 25, "head": 7.5, "injectors": 50})
    assert math.fsum(found.values()) == pytest.approx(100)


def test_a_shared_parameter_counts_once_in_the_first_group() -> None:
    student = Student()
    student.body.add_module("3", nn.Linear(2, 2, bias=False))
    student.body[3].weight = student.stem.weight  # type: ignore[assignment]
    expected = {"scale": 15, "stem": 20, "body": 50, "head": 15}
    assert layer_shares(student) == pytest.approx(expected)
    assert layer_shares(student, extra={"again": student.head.parameters()}) == pytest.approx(expected)


def test_the_share_of_the_tap_is_that_of_its_group() -> None:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    student(torch.randn(5, 4)).square().sum().backward()
    found = layer_shares(student)
    assert list(found) == ["0", "2", "3"]
    assert found["2"] == pytest.approx(gradient_share(student[2].parameters(), student.parameters()).item(), rel=1e-6)


def test_what_wraps_a_student_is_no_group() -> None:
    assert list(layer_shares(torch.compile(Student(), backend="eager"))) == ["scale", "stem", "body", "head"]  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        layer_shares(Student().parameters())  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_not_finite_is_nan_in_every_group(value: float) -> None:
    student = Student()
    student.head.weight.grad[0, 0] = value  # type: ignore[index]
    found = layer_shares(student)
    assert list(found) == ["scale", "stem", "body", "head"]
    assert all(math.isnan(share) for share in found.values())


def test_without_gradient() -> None:
    student = Student()
    student.head.weight.grad = None
    assert layer_shares(student)["head"] == 0
    student.zero_grad()
    assert layer_shares(student) == {"scale": 0, "stem": 0, "body": 0, "head": 0}
    assert layer_shares(student.requires_grad_(False)) == {}


def test_the_device_is_read_once() -> None:
    reads = []

    class Reads(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func.__name__ in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__"):
                reads.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with Reads():
        layer_shares(Student(), depth=2)
    assert reads == ["tolist"]


def _work(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    student, mesh = Student(), init_device_mesh("cpu", (WORLD,))
    gradients = {name: one.grad for name, one in student.named_parameters() if one.requires_grad}
    wrapped = nn.parallel.DistributedDataParallel(Student())
    found: dict[str, Any] = {"whole": layer_shares(student), "DDP": list(layer_shares(wrapped))}
    modulator = GradientModulator(5.0, calibration_updates=1)
    for step in range(30):
        modulator.observe(10.0 + step + 2 * rank if step or rank else math.nan)
    modulator.update()
    assert modulator.calibration is not None
    found["calibration"] = (modulator.calibration.shares, modulator.calibration.steps, modulator.calibration.rho)
    if SHARDS:
        from torch.distributed.tensor import distribute_tensor

        student.zero_grad()
        fully_shard(student.body, mesh=mesh)
        fully_shard(student, mesh=mesh)
        for name, parameter in student.named_parameters():
            if name in gradients:
                parameter.grad = distribute_tensor(gradients[name], mesh, parameter.placements)  # type: ignore
        plain = nn.Parameter(torch.zeros(1))
        plain.grad = torch.full((1,), 40.0)
        found["sharded"] = layer_shares(student, extra={"injectors": [plain]})
    return found


def _start(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    try:
        torch.save(_work(rank), f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("this build of torch has no gloo")
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_start, args=(str(folder),), nprocs=WORLD)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.skipif(not SHARDS, reason="this torch shards on no CPU")
def test_shares_of_sharded_gradients(ranks: list[dict[str, Any]]) -> None:
    halved = {name: share / 2 for name, share in ranks[0]["whole"].items()}  # the injectors have as much as all others
    for rank in ranks:
        assert rank["sharded"] == pytest.approx({**halved, "injectors": 50}, rel=1e-6)


def test_replicas_are_no_group_and_count_once(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["DDP"] == list(rank["whole"]) == ["scale", "stem", "body", "head"]


def test_a_calibration_is_that_of_all_processes(ranks: list[dict[str, Any]]) -> None:
    shares, steps, rho = ranks[0]["calibration"]
    assert ranks[1]["calibration"] == ranks[0]["calibration"]
    assert shares == ((11 + 12 + 13) / 3, *(11 + step + 0.5 for step in range(2, 30, 2)))  # of two steps each
    assert steps == 30  # in one of the processes
    assert rho == pytest.approx((29 * 10 + 30 * 12 + 2 * 435) / 59)
