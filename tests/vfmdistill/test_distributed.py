from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import vfmdistill
from vfmdistill import DistillError, GradientModulator

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this build of torch has no gloo"
)

SHARDS = hasattr(torch.cpu.Stream, "record_event")  # this torch shards on the CPU
WORLD = 2
STEPS, EPOCHS = 3, 3
IMAGES = torch.rand(STEPS, 4, 3, 32, 48, generator=torch.Generator().manual_seed(0))


class Student(nn.Module):
    """Small, and without anything that depends on who else is in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.body = nn.Sequential(nn.GroupNorm(2, 8), nn.Conv2d(8, 12, 2, 2))
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.body(self.stem(images))).mean((2, 3)))
        return logits


def _parts() -> tuple[Student, nn.Module]:
    torch.manual_seed(0)
    return Student(), nn.Conv2d(3, 10, 8, 8)


def _whole(tensor: Any) -> Tensor:
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().clone()


def _train(student: nn.Module, teacher: nn.Module, part: slice, accumulate: bool = False) -> dict[str, Any]:
    """Train with a narrow window, so that λ moves at every update; return what must agree."""
    modulator = GradientModulator(5.0, 11.0, 0.01, 20.0)
    weights, shares, gradients = [], [], []
    with vfmdistill.attach(student, teacher, tap="body", modulator=modulator, probe=IMAGES[0]) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-2)
        for _ in range(EPOCHS):
            for images in IMAGES[:, part]:
                optimizer.zero_grad()
                for piece in images.chunk(2) if accumulate else [images]:
                    loss = student(piece).logsumexp(1).mean() + distiller.loss(piece)
                    (loss / (2 if accumulate else 1)).backward()
                    distiller.observe()
                gradients.append([p.grad.clone() for p in distiller.parameters()])  # type: ignore[union-attr]
                shares.append(distiller.metrics()["share"])
                optimizer.step()
            distiller.update()
            weights.append(distiller.weight)
        return {
            "weights": weights,
            "shares": shares,
            "gradients": gradients,
            "injector": [p.detach().clone() for p in distiller.parameters()],
            "student": [_whole(p) for p in student.parameters()],
        }


def _ddp(rank: int, accumulate: bool = False) -> dict[str, Any]:
    student, teacher = _parts()
    torch.manual_seed(rank)  # the injectors must agree all the same
    return _train(DistributedDataParallel(student), teacher, slice(2 * rank, 2 * rank + 2), accumulate)


def _ddp_accumulated(rank: int) -> dict[str, Any]:
    return _ddp(rank, accumulate=True)


def _fsdp(rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    student, teacher = _parts()
    torch.manual_seed(rank)
    mesh = init_device_mesh("cpu", (WORLD,))
    fully_shard(student.body, mesh=mesh)
    fully_shard(student, mesh=mesh)
    return _train(student, teacher, slice(2 * rank, 2 * rank + 2))


def _sharded_replicated_and_plain(rank: int) -> dict[str, Any]:
    """The share of parameters that are sharded, replicated and plain; one has a gradient on the first process only."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (WORLD,))
    gradients = [torch.tensor([1.0, -2.0, 3.0]), torch.tensor([4.0, 5.0]), torch.tensor([6.0, -7.0]), torch.ones(5)]
    sharded, replicated = (
        nn.Parameter(distribute_tensor(torch.zeros_like(gradient), mesh, [placement]))
        for gradient, placement in zip(gradients, (Shard(0), Replicate()), strict=False)
    )
    sharded.grad = distribute_tensor(gradients[0], mesh, [Shard(0)])
    replicated.grad = distribute_tensor(gradients[1], mesh, [Replicate()])
    plain, partly = nn.Parameter(torch.zeros(2)), nn.Parameter(distribute_tensor(torch.zeros(5), mesh, [Shard(0)]))
    plain.grad = gradients[2]
    ones = distribute_tensor(gradients[3], mesh, [Shard(0)])  # three of them on the first process
    partly.grad = ones if rank == 0 else None
    share = vfmdistill.gradient_share([sharded, partly], [sharded, replicated, plain, partly])
    return {"share": share.item()}


def _different_shares(rank: int) -> dict[str, Any]:
    modulator = GradientModulator(5.0, 11.0, 1.0, 20.0)
    for share in ([9.0, 10.0, 11.0], [20.0, float("nan")])[rank]:
        modulator.observe(share)
    update = modulator.update()
    return {"share": update.share, "weight": update.weight}


def _stepped_without_observe(rank: int) -> dict[str, Any]:
    student, teacher = _parts()
    images = IMAGES[0]
    messages = {}
    for kind in ("AdamW", "fused AdamW", "SGD"):
        with vfmdistill.attach(DistributedDataParallel(student), teacher, tap="body", modulator=1.0) as distiller:
            parameters = [*student.parameters(), *distiller.parameters()]
            optimizer: torch.optim.Optimizer
            if kind == "SGD":
                optimizer = torch.optim.SGD(parameters, lr=1e-3)
            else:
                optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=kind.startswith("fused"))
            try:
                for observes in (True, False, False):
                    for _ in range(2):  # accumulation, observed at its end, is as it should be
                        student(images)
                        distiller.loss(images).backward()
                    if observes:
                        distiller.observe()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none="fused" in kind)
            except DistillError as error:
                messages[kind] = str(error)
    return messages


def _train_with_two_teachers(student: nn.Module, teacher: nn.Module, part: slice) -> dict[str, Any]:
    """Train with two teachers, each with its own λ, that see every other batch; return what must agree."""
    other = nn.Conv2d(3, 5, 8, 8)
    with torch.no_grad():
        other.weight.copy_(100 * teacher.weight[:5])  # type: ignore[index, operator]
    teachers = {vfmdistill.Teacher(teacher): 3, vfmdistill.Teacher(other): 1}
    names = [f"{teacher.spec.name}{suffix}" for teacher, suffix in zip(teachers, ("", "-2"), strict=True)]
    modulators = {name: GradientModulator(5.0, 11.0, 0.01, 20.0) for name in names}
    with vfmdistill.attach(
        student,
        teachers,
        tap="body",
        injector=functools.partial(vfmdistill.SemanticInjector, objective="mse"),
        modulator=modulators,
        every=2,
        probe=IMAGES[0],
    ) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)
        shares = []
        for _ in range(4):
            for images in IMAGES[:, part]:
                optimizer.zero_grad()
                (student(images).logsumexp(1).mean() + distiller.loss(images)).backward()
                distiller.observe()
                optimizer.step()
            shares.append([update.share for update in distiller.update().teachers.values()])
        state = distiller.state_dict()
        return {
            "shares": torch.tensor(shares),
            "weights": torch.tensor([modulator.weight for modulator in modulators.values()]),
            "steps": state["teaching"]["steps"],
            "balance": torch.tensor([figures["variance"] for figures in state["teaching"]["balance"].values()]),
            "injectors": [p.detach().clone() for p in distiller.parameters()],
        }


def _two_teachers(rank: int) -> dict[str, Any]:
    student, teacher = _parts()
    return _train_with_two_teachers(DistributedDataParallel(student), teacher, slice(2 * rank, 2 * rank + 2))


WORKS = [
    _ddp,
    _ddp_accumulated,
    *([_fsdp] if SHARDS else []),
    _sharded_replicated_and_plain,
    _different_shares,
    _stepped_without_observe,
    _two_teachers,
]


def _start(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    try:
        torch.save({work.__name__: work(rank) for work in WORKS}, f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes got out of all the work, in one start, since starting takes the time."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(_start, args=(str(folder),), nprocs=WORLD)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """One process with the joined batch."""
    student, teacher = _parts()
    torch.manual_seed(0)
    return _train(student, teacher, slice(None))


_sharded = pytest.param("_fsdp", marks=pytest.mark.skipif(not SHARDS, reason="this torch shards on no CPU"))


@pytest.mark.parametrize("work", ["_ddp", "_ddp_accumulated", _sharded])
def test_processes_agree_to_the_last_bit(work: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[work] for rank in ranks)
    assert len(set(first["weights"])) == EPOCHS  # λ moved at every update
    assert first["weights"] == second["weights"]
    for key in ("gradients", "injector", "student"):
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)


@pytest.mark.parametrize("work", ["_ddp", _sharded])
def test_processes_do_what_one_does_with_the_joined_batch(
    work: str, ranks: list[dict[str, Any]], whole: dict[str, Any]
) -> None:
    first = ranks[0][work]
    assert first["weights"] == pytest.approx(whole["weights"], rel=1e-5)
    assert first["shares"] == pytest.approx(whole["shares"], rel=1e-5)
    for key in ("gradients", "injector", "student"):
        torch.testing.assert_close(first[key], whole[key], rtol=0, atol=1e-6)


def test_accumulation_sums_up_to_the_joined_batch(ranks: list[dict[str, Any]], whole: dict[str, Any]) -> None:
    epoch = slice(0, STEPS)  # until λ moves by the shares, which are those of the parts in between as well
    gradients = ranks[0]["_ddp_accumulated"]["gradients"]
    torch.testing.assert_close(gradients[epoch], whole["gradients"][epoch], rtol=0, atol=1e-6)


def test_share_of_sharded_replicated_and_plain_parameters(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["_sharded_replicated_and_plain"]["share"] == pytest.approx(100 * (6 + 3) / (6 + 3 + 9 + 13))


def test_update_takes_the_mean_over_all_steps_of_all_processes(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["_different_shares"]["share"] == 12.5  # (9 + 10 + 11 + 20) / 4
        assert rank["_different_shares"]["weight"] == pytest.approx(5 * (10 * 87.5) / (12.5 * 90))


@pytest.mark.parametrize("optimizer", ["AdamW", "fused AdamW", "SGD"])
def test_stepping_without_observe_is_an_error(optimizer: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        messages = rank["_stepped_without_observe"]
        assert "Call distiller.observe() after every loss.backward()" in messages[optimizer]


def test_two_teachers_are_balanced_and_weighted_alike_in_all_processes(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["_two_teachers"] for rank in ranks)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first["balance"][1] > 1000 * first["balance"][0]
    student, teacher = _parts()
    whole = _train_with_two_teachers(student, teacher, slice(None))
    assert first["steps"] == whole["steps"] == 4 * STEPS
    # Up to the balance, which knows each process's part of the batch only
    torch.testing.assert_close(first["balance"], whole["balance"], rtol=0.05, atol=0)
    torch.testing.assert_close(first["shares"], whole["shares"], rtol=0.05, atol=0)
    torch.testing.assert_close(first["weights"], whole["weights"], rtol=0.1, atol=0)
