from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.training_runs import EPOCHS, IMAGES, STEPS, Checkpointed, Student, Wrap, parts, shard, train, whole_tensor
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import vfmdistill
from vfmdistill import DistillError, GradientModulator

pytestmark = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="this build of torch has no gloo"
)

SHARDS = hasattr(torch.cpu.Stream, "record_event")  # this torch shards on the CPU
WORLD = 2
Work = Callable[[int], dict[str, Any]]
NETWORKS: dict[str, tuple[type[Student], Wrap]] = {
    "ddp": (Student, DistributedDataParallel),
    "ddp, checkpointed": (Checkpointed, DistributedDataParallel),
    **({"fsdp": (Student, shard), "fsdp, checkpointed": (Checkpointed, shard)} if SHARDS else {}),
}
TRAINING = {"whole": (1, "each"), "in pieces": (2, "each"), "in pieces, observed once": (2, "last")}
WAYS = [f"{network}, {when}, {how}" for network in NETWORKS for when in ("before", "after") for how in TRAINING]


def _trained(rank: int, network: str, when: str, how: str) -> dict[str, Any]:
    """Train one process's part of the batch in a student that is wrapped before or after attaching."""
    kind, wrap = NETWORKS[network]
    pieces, observes = TRAINING[how]
    student, teacher = parts(kind)
    torch.manual_seed(rank)  # the injectors must agree all the same
    part = slice(2 * rank, 2 * rank + 2)
    if when == "before":
        return train(wrap(student), teacher, part, pieces=pieces, observes=observes)
    return train(student, teacher, part, wrap=wrap, pieces=pieces, observes=observes)


def _without_another_loss(rank: int) -> dict[str, Any]:
    """The student's weights after two steps with the semantic loss alone, or the error of the second step."""
    found: dict[str, Any] = {}
    wraps: dict[str, Wrap] = {"ddp": DistributedDataParallel}
    if SHARDS:
        wraps["fsdp"] = functools.partial(shard, apart=False)
    for name, wrap in wraps.items():
        for reaches_all in (True, False):
            student, teacher = parts()
            torch.manual_seed(0)
            try:
                weights = _align(wrap(student), teacher, slice(2 * rank, 2 * rank + 2), reaches_all)
                found[f"{name}, {reaches_all}"] = weights
            except (DistillError, RuntimeError) as error:
                found[f"{name}, {reaches_all}"] = str(error)
    return found


def _align(student: nn.Module, teacher: nn.Module, part: slice, reaches_all: bool) -> list[Tensor]:
    with vfmdistill.attach(student, teacher, tap="body", modulator=1.0, probe=IMAGES[0]) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-2)
        for images in IMAGES[:2, part]:
            optimizer.zero_grad()
            outputs = student(images)
            (distiller.loss(images) + (0 * outputs.sum() if reaches_all else 0)).backward()
            distiller.observe()
            optimizer.step()
        return [whole_tensor(parameter) for parameter in student.parameters()]


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
    student, teacher = parts()
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
    student, teacher = parts()
    return _train_with_two_teachers(DistributedDataParallel(student), teacher, slice(2 * rank, 2 * rank + 2))


WORKS: dict[str, Work] = {
    **{
        way: functools.partial(_trained, network=network, when=when, how=how)
        for network in NETWORKS
        for when in ("before", "after")
        for how in TRAINING
        for way in [f"{network}, {when}, {how}"]
    },
    "alone": _without_another_loss,
    "mixed": _sharded_replicated_and_plain,
    "shares": _different_shares,
    "unobserved": _stepped_without_observe,
    "teachers": _two_teachers,
}


def _start(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    try:
        torch.save({name: work(rank) for name, work in WORKS.items()}, f"{folder}/{rank}.pt")
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
    student, teacher = parts()
    torch.manual_seed(0)  # as in the first process
    return train(student, teacher, slice(None))


@pytest.mark.parametrize("way", WAYS)
def test_processes_do_what_one_does_with_the_joined_batch(
    way: str, ranks: list[dict[str, Any]], whole: dict[str, Any]
) -> None:
    first, second = (rank[way] for rank in ranks)
    assert first["weights"] == second["weights"]
    for key in ("gradients", "injector", "student"):
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)
        torch.testing.assert_close(first[key], whole[key], rtol=0, atol=1e-6)
    assert len(set(whole["weights"])) == EPOCHS  # λ moved at every update
    for key in ("weights", "shares", "means"):
        assert first[key] == pytest.approx(whole[key], rel=1e-5)


def test_share_of_sharded_replicated_and_plain_parameters(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["mixed"]["share"] == pytest.approx(100 * (6 + 3) / (6 + 3 + 9 + 13))


def test_update_takes_the_mean_over_all_steps_of_all_processes(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["shares"]["share"] == 12.5  # (9 + 10 + 11 + 20) / 4
        assert rank["shares"]["weight"] == pytest.approx(5 * (10 * 87.5) / (12.5 * 90))


@pytest.mark.parametrize("optimizer", ["AdamW", "fused AdamW", "SGD"])
def test_stepping_without_observe_is_an_error(optimizer: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        messages = rank["unobserved"]
        assert "Call distiller.observe() after every loss.backward()" in messages[optimizer]


def test_two_teachers_are_balanced_and_weighted_alike_in_all_processes(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["teachers"] for rank in ranks)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    assert first["balance"][1] > 1000 * first["balance"][0]
    student, teacher = parts()
    whole = _train_with_two_teachers(student, teacher, slice(None))
    assert first["steps"] == whole["steps"] == 4 * STEPS
    # Up to the balance, which knows each process's part of the batch only
    torch.testing.assert_close(first["balance"], whole["balance"], rtol=0.05, atol=0)
    torch.testing.assert_close(first["shares"], whole["shares"], rtol=0.05, atol=0)
    torch.testing.assert_close(first["weights"], whole["weights"], rtol=0.1, atol=0)


@pytest.mark.parametrize("network", ["ddp", *(["fsdp"] if SHARDS else [])])
def test_without_another_loss_the_outputs_must_be_in_it(network: str, ranks: list[dict[str, Any]]) -> None:
    student, teacher = parts()
    torch.manual_seed(0)
    expected = _align(student, teacher, slice(None), reaches_all=True)
    message = {"ddp": "parameters that were not used", "fsdp": r"'body' were used .*add 0 \* outputs\.sum\(\)"}[network]
    for rank in ranks:
        torch.testing.assert_close(rank["alone"][f"{network}, True"], expected, rtol=0, atol=1e-6)
        assert re.search(message, rank["alone"][f"{network}, False"])
