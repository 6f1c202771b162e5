"""What PyTorch users do to their models while a distiller is attached, and what becomes of it."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.students import IMAGES, Classifier, Wide, hooks, same_state, step
from support.training_runs import IMAGES as BATCHES
from support.training_runs import Checkpointed, Student, parts, train
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from vfmdistill import CaptureError, Distiller, InputError, Teacher, attach, gradient_share


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """A run of a student to which nothing is done."""
    student, teacher = parts()
    return train(student, teacher, slice(None))


def _agrees(run: dict[str, Any], plain: dict[str, Any]) -> bool:
    for key in ("weights", "shares", "means"):
        assert run[key] == pytest.approx(plain[key], rel=1e-5), key
    for key in ("injector", "student"):
        torch.testing.assert_close(run[key], plain[key], rtol=0, atol=1e-6)
    return len(set(run["weights"])) == len(run["weights"])  # λ moved at every update


# Activation checkpointing


def test_checkpointing_changes_nothing(plain: dict[str, Any]) -> None:
    student, teacher = parts(Checkpointed)
    assert _agrees(train(student, teacher, slice(None)), plain)


def test_checkpointing_of_the_tapped_module(plain: dict[str, Any]) -> None:
    def wrap(network: nn.Module) -> nn.Module:
        apply_activation_checkpointing(network, check_fn=lambda module: isinstance(module, nn.Sequential))
        assert type(network.body).__name__ == "CheckpointWrapper"
        return network

    student, teacher = parts()
    assert _agrees(train(student, teacher, slice(None), wrap=wrap), plain)


def test_what_is_computed_again_is_not_captured() -> None:
    student, teacher = parts(Checkpointed)
    calls: list[bool] = []
    student.body.register_forward_hook(lambda module, args, output: calls.append(output.requires_grad))
    with attach(student, teacher, tap="body", probe=BATCHES[0]) as distiller:
        calls.clear()
        step(student, distiller, BATCHES[0])
        assert calls == [True, True]  # in the forward, and again in the backward
        with pytest.raises(CaptureError, match="was not called"):
            distiller.loss(BATCHES[0])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_has_no_gradient_to_give() -> None:
    class Reentrant(Student):
        def forward(self, images: Tensor) -> Tensor:
            features = checkpoint(self.body, self.stem(images), use_reentrant=True)
            logits: Tensor = self.head(torch.relu(features).mean((2, 3)))
            return logits

    student, teacher = parts(Reentrant)
    with attach(student, teacher, tap="body", probe=BATCHES[0]) as distiller:
        student(BATCHES[0])
        with pytest.raises(CaptureError, match="checkpoint with use_reentrant=False"):
            distiller.loss(BATCHES[0])


# Accumulation


@pytest.mark.parametrize(("pieces", "observes"), [(2, "each"), (2, "last"), (4, "each")])
def test_accumulated_steps_have_the_share_of_whole_ones(pieces: int, observes: str, plain: dict[str, Any]) -> None:
    student, teacher = parts()
    assert _agrees(train(student, teacher, slice(None), pieces=pieces, observes=observes), plain)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "fused AdamW", "foreach AdamW"])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_the_end_of_a_step_shows_with_any_optimizer(optimizer: str, set_to_none: bool) -> None:
    student, teacher = parts()
    with attach(student, teacher, tap="body", modulator=1.0, probe=BATCHES[0]) as distiller:
        parameters = [*student.parameters(), *distiller.parameters()]
        kind: Any = torch.optim.SGD if optimizer == "SGD" else torch.optim.AdamW
        options = {} if optimizer in ("SGD", "AdamW") else {optimizer.split()[0]: True}
        moves = kind(parameters, lr=1e-3, **options)
        shares = []
        for images in BATCHES:
            moves.zero_grad(set_to_none=set_to_none)
            for piece in images.chunk(2):
                step(student, distiller, piece)
            shares.append(distiller.metrics()["share"])
            moves.step()
        state = distiller.state_dict()["modulator"]
        assert state["share_count"] == len(BATCHES)
        assert distiller.update().share == pytest.approx(sum(shares) / len(shares))


@pytest.mark.parametrize("given_up", [0, 1, 2])
def test_a_step_that_is_given_up_does_not_count(given_up: int) -> None:
    student, teacher = parts()
    with attach(student, teacher, tap="body", modulator=1.0, probe=BATCHES[0]) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)
        shares = []
        for number, images in enumerate(BATCHES):
            optimizer.zero_grad()
            step(student, distiller, images)
            if number == given_up:
                distiller.discard()
                continue
            shares.append(distiller.metrics()["share"])
            optimizer.step()
        assert distiller.state_dict()["modulator"]["share_count"] == 2
        assert distiller.update().share == pytest.approx(sum(shares) / 2)


# Several forwards


def test_of_several_forwards_the_last_one_counts(student: Classifier) -> None:
    student.body[2].eval()
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        student(IMAGES.flip(0))
        student(IMAGES)
        both = distiller.loss(IMAGES)
        student(IMAGES)
        torch.testing.assert_close(both, distiller.loss(IMAGES))
        losses = []
        for images in (IMAGES.flip(3), IMAGES):
            student(images)
            losses.append(distiller.loss(images))
        assert losses[0] != losses[1]
        sum(losses).backward()  # type: ignore[union-attr]
        assert student.body[0].weight.grad is not None


def test_of_several_calls_of_the_tap_the_last_one_counts() -> None:
    class Twice(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            super().forward(images.flip(3))
            return super().forward(images)

    torch.manual_seed(1)
    once, teacher = Classifier(), Teacher(Wide())
    twice = Twice()
    twice.load_state_dict(once.state_dict())
    losses = []
    for network in (once, twice):
        network.body[2].eval()
        torch.manual_seed(2)
        with attach(network, teacher, tap="body", modulator=1.0) as distiller:
            network(IMAGES)
            losses.append(distiller.loss(IMAGES))
    torch.testing.assert_close(losses[0], losses[1])


# Precision, memory format, frozen layers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_share_does_not_depend_on_the_scale(student: Classifier, dtype: torch.dtype) -> None:
    for module in (student.stem[1], student.body[1], student.body[2]):
        module.eval()
    shares = []
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        for scale in (1.0, 2.0**6):
            student.zero_grad()
            distiller.injectors.zero_grad()
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            with torch.autocast("cpu", dtype=dtype):
                loss = student(IMAGES).float().logsumexp(1).mean() + distiller.loss(IMAGES)
            assert loss.dtype == torch.float32
            scaler.scale(loss).backward()
            distiller.observe()
            shares.append(distiller.metrics()["share"])
    assert shares[0] == pytest.approx(shares[1], rel=1e-2 if dtype == torch.float16 else 1e-6)
    assert 0 < shares[0] < 100


def test_an_overflow_that_the_scaler_finds_teaches_nothing(student: Classifier) -> None:
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
        before = copy.deepcopy(student.state_dict())
        for overflows in (True, False):
            optimizer.zero_grad()
            loss = student(IMAGES).logsumexp(1).mean() + distiller.loss(IMAGES)
            scaler.scale(loss * (1e38 if overflows else 1.0)).backward()
            distiller.observe()
            scaler.step(optimizer)
            scaler.update()
            assert torch.equal(before["head.weight"], student.head.weight) == overflows
        assert distiller.state_dict()["modulator"]["share_count"] == 1
        assert distiller.update().share == pytest.approx(distiller.metrics()["share"])


def test_channels_last(plain: dict[str, Any]) -> None:
    student, teacher = parts()
    student.to(memory_format=torch.channels_last)
    assert _agrees(train(student, teacher, slice(None)), plain)
    assert student.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_frozen_layers_stay_and_do_not_count(student: Classifier) -> None:
    student.stem.requires_grad_(False)
    stem = copy.deepcopy(student.stem.state_dict())
    with attach(student, Wide(), tap="body") as distiller:
        optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], lr=1e-3)
        step(student, distiller)
        trained = [p for p in [*student.parameters(), *distiller.parameters()] if p.requires_grad]
        expected = gradient_share(student.body.parameters(), trained)
        assert distiller.metrics()["share"] == pytest.approx(expected.item())
        optimizer.step()
        assert all(torch.equal(stem[name], p) for name, p in student.stem.named_parameters())
        student.stem.requires_grad_(True)  # thawed in the middle
        step(student, distiller)
        assert student.stem[0].weight.grad is not None
    assert all(parameter.requires_grad for parameter in student.parameters())


# Compiling


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("when", ["before", "after", "in place, before", "in place, after", "the tap, after"])
def test_compiled_students_learn_the_same(when: str, plain: dict[str, Any]) -> None:
    student, teacher = parts()
    attached: Any = student

    def wrap(network: nn.Module) -> nn.Module:
        if when == "after":
            compiled: Any = torch.compile(network, backend="aot_eager", fullgraph=True)
            return compiled
        if when == "in place, after":
            network.compile(backend="aot_eager", fullgraph=True)
        if when == "the tap, after":
            network.get_submodule("body").compile(backend="aot_eager", fullgraph=True)
        return network

    if when == "before":
        attached = torch.compile(student, backend="aot_eager", fullgraph=True)
    if when == "in place, before":
        student.compile(backend="aot_eager", fullgraph=True)
    assert _agrees(train(attached, teacher, slice(None), wrap=wrap), plain)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("inside", [True, False])
def test_checkpoints_and_compiling_together(inside: bool, plain: dict[str, Any]) -> None:
    def wrap(network: nn.Module) -> nn.Module:
        if inside:
            network.get_submodule("body").compile(backend="aot_eager")
            return network
        compiled: Any = torch.compile(network, backend="aot_eager")
        return compiled

    student, teacher = parts(Checkpointed)
    assert _agrees(train(student, teacher, slice(None), wrap=wrap), plain)
    with attach(student, teacher, tap="body", probe=BATCHES[0]) as distiller:
        step(wrap(student), distiller, BATCHES[0])
        with pytest.raises(CaptureError, match="was not called"):
            distiller.loss(BATCHES[0])


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_and_run_before_attaching_is_said_and_mended() -> None:
    student, teacher = parts()
    compiled = torch.compile(student, backend="eager")
    compiled(BATCHES[0])
    with attach(compiled, teacher, tap="body", probe=BATCHES[0]) as distiller:
        compiled(BATCHES[0])
        with pytest.raises(CaptureError, match=r"compiled and run before attaching.*torch\.compiler\.reset\(\)"):
            distiller.loss(BATCHES[0])
        torch.compiler.reset()
        assert step(compiled, distiller, BATCHES[0]).isfinite()


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_code_that_ran_in_eval_mode_does_not_hide_the_tap_from_the_probe() -> None:
    student, teacher = parts()
    student.compile(backend="eager")
    with torch.no_grad():
        student.eval()(BATCHES[0])
    student.train()
    with attach(student, teacher, tap="body", probe=BATCHES[0]) as distiller:
        assert [tap.path for tap in distiller.taps] == ["body"]
    assert hooks(student) == 0


@pytest.mark.usefixtures("_fresh_compiler")
def test_nothing_is_captured_by_compiled_code_after_detaching() -> None:
    student, teacher = parts()
    distiller = attach(student, teacher, tap="body", probe=BATCHES[0])
    (capture,) = distiller._student_maps._captures
    compiled = torch.compile(student, backend="eager")
    step(compiled, distiller, BATCHES[0])
    distiller.detach()
    compiled(BATCHES[0])
    assert capture._output is None


# Copies


def _pickled(student: nn.Module) -> nn.Module:
    copied: nn.Module = pickle.loads(pickle.dumps(student))
    return copied


def _saved(student: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(student, file)
    file.seek(0)
    copied: nn.Module = torch.load(file, weights_only=False)
    return copied


COPIES: list[Callable[[nn.Module], nn.Module]] = [copy.deepcopy, AveragedModel, _pickled, _saved]


@pytest.mark.parametrize("make", COPIES)
def test_copies_carry_no_hook_and_feed_no_one(make: Callable[[nn.Module], nn.Module], student: Classifier) -> None:
    with attach(student, Wide(), tap=["stem", "body"]) as distiller:
        student(IMAGES)
        held = [capture._output for capture in distiller._student_maps._captures]
        copied = make(student)
        if make in (_pickled, _saved):
            copied(IMAGES)  # what was unpickled loses its idle hook with the first forward
        assert hooks(copied) == 0
        assert hooks(student) == 2
        copied(IMAGES)
        assert [capture._output for capture in distiller._student_maps._captures] == held
        assert distiller.loss(IMAGES).requires_grad
    twin = copy.deepcopy(student)
    assert same_state(student, twin)


def test_hooks_of_the_student_s_own_are_copied(student: Classifier) -> None:
    calls: list[str] = []
    student.body.register_forward_hook(lambda module, args, output: calls.append("before"))
    with attach(student, Wide(), tap="body"):
        student.body.register_forward_hook(lambda module, args, output: calls.append("after"))
        copied = copy.deepcopy(student)
    calls.clear()
    copied(IMAGES)
    assert calls == ["before", "after"]
    assert hooks(copied) == hooks(student) == 2


def test_state_dict_hooks_go_on_and_keys_stay(student: Classifier) -> None:
    calls: list[str] = []
    student.body.register_state_dict_post_hook(lambda module, state, prefix, metadata: calls.append("saved"))
    student.body.register_load_state_dict_post_hook(lambda module, keys: calls.append("loaded"))
    keys = list(student.state_dict())
    with attach(student, Wide(), tap="body") as distiller:
        step(student, distiller)
        calls.clear()
        state = student.state_dict()
        assert list(state) == keys
        student.load_state_dict(state)
        assert calls == ["saved", "loaded"]


# Exceptions


class TroubleError(Exception):
    pass


def _trouble(*values: object) -> None:
    raise TroubleError


def _in_front_of_the_tap(student: Classifier, distiller: Distiller) -> Any:
    return student.stem.register_forward_pre_hook(_trouble)


def _behind_the_tap(student: Classifier, distiller: Distiller) -> Any:
    return student.head.register_forward_pre_hook(_trouble)


def _in_the_tap(student: Classifier, distiller: Distiller) -> Any:
    return student.body[0].register_forward_hook(_trouble)


def _in_the_teacher(student: Classifier, distiller: Distiller) -> Any:
    return distiller.teacher.register_forward_pre_hook(_trouble)


def _in_the_injector(student: Classifier, distiller: Distiller) -> Any:
    return next(iter(distiller.injectors.values())).register_forward_hook(_trouble)


def _in_the_backward(student: Classifier, distiller: Distiller) -> Any:
    return student.body[0].weight.register_hook(_trouble)


@pytest.mark.parametrize(
    "trouble",
    [_in_front_of_the_tap, _behind_the_tap, _in_the_tap, _in_the_teacher, _in_the_injector, _in_the_backward],
)
def test_a_batch_that_fails_is_as_if_it_had_not_been(trouble: Callable[..., Any]) -> None:
    runs = []
    teacher = Teacher(Wide())
    for fails in (True, False):
        torch.manual_seed(0)
        student = Classifier()
        for module in (student.stem[1], student.body[1], student.body[2]):
            module.eval()  # statistics move with every forward, also of a batch that fails
        with attach(student, teacher, tap="body") as distiller:
            optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=1e-2)
            for number in range(3):
                optimizer.zero_grad()
                if number == 1:
                    if fails:
                        handle = trouble(student, distiller)
                        with pytest.raises(TroubleError):
                            step(student, distiller)
                        handle.remove()
                        distiller.discard()
                    continue
                step(student, distiller)
                optimizer.step()
            runs.append((distiller.update(), [p.detach() for p in student.parameters()]))
        assert hooks(student) == 0
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(one, other) for one, other in zip(runs[0][1], runs[1][1], strict=True))


def test_an_exception_in_attach_leaves_nothing(student: Classifier) -> None:
    twin, teacher = copy.deepcopy(student), Wide()

    def fails(student_dim: int, teacher_dim: int) -> nn.Module:
        raise TroubleError

    state = torch.get_rng_state()
    with pytest.raises(TroubleError):
        attach(student, teacher, tap="body", injector=fails)
    assert hooks(student) == 0
    assert same_state(student, twin)
    assert torch.equal(torch.get_rng_state(), state)


# Several distillers


def test_distillers_on_one_student_do_not_see_each_other(student: Classifier) -> None:
    student.body[2].eval()
    teacher = Teacher(Wide())
    torch.manual_seed(3)
    with attach(student, teacher, tap="body", modulator=1.0) as alone:
        student(IMAGES)
        expected = alone.loss(IMAGES)
    torch.manual_seed(3)
    with attach(student, teacher, tap="body", modulator=1.0) as outer:
        with attach(student, teacher, tap="stem", modulator=1.0) as inner:
            student(IMAGES)
            inner.loss(IMAGES)
            torch.testing.assert_close(outer.loss(IMAGES), expected)
        assert hooks(student) == 1
        student(IMAGES)
        torch.testing.assert_close(outer.loss(IMAGES), expected)
    assert hooks(student) == 0
    with pytest.raises(Exception, match="after detach"):
        inner.loss(IMAGES)


def test_two_students_learn_from_one_teacher_as_from_two(student: Classifier) -> None:
    results = []
    for shared in (True, False):
        torch.manual_seed(0)
        first, second = Classifier().eval(), Classifier().eval()
        first.training = second.training = True
        network = Wide()
        one = Teacher(network)
        other = one if shared else Teacher(copy.deepcopy(network))
        with attach(first, one, tap="body") as left, attach(second, other, tap="stem") as right:
            for _ in range(2):
                losses = (step(first, left), step(second, right))
            results.append((losses, left.update(), right.update()))
    assert results[0] == results[1]


# Threads


def test_a_thread_that_runs_another_model_changes_nothing(plain: dict[str, Any]) -> None:
    student, teacher = parts()
    stop, ran = threading.Event(), threading.Event()
    other = copy.deepcopy(student)

    def load() -> None:
        while not stop.is_set():
            other(BATCHES[0]).sum().backward()
            with torch.no_grad():
                student.stem(BATCHES[0])
            ran.set()

    def begin(network: nn.Module) -> nn.Module:
        nonlocal other
        other = copy.deepcopy(network)
        thread.start()
        assert ran.wait(10)
        return network

    thread = threading.Thread(target=load, daemon=True)
    try:
        assert _agrees(train(student, teacher, slice(None), wrap=begin), plain)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()


def test_several_taps_share_the_loss(student: Classifier) -> None:
    with attach(student, Wide(), tap={"stem": 1, "body": 3}, modulator=1.0) as distiller:
        step(student, distiller)
        metrics = distiller.metrics()
        stem, body = metrics["semantic_loss/Wide:stem"], metrics["semantic_loss/Wide:body"]
        assert metrics["semantic_loss"] == pytest.approx(0.25 * stem + 0.75 * body)
    for shares in ({}, {"stem": 0}, {"stem": -1, "body": 1}, {"stem": float("nan")}, {"stem": "1"}):
        with pytest.raises(InputError, match=r"tap shares .*; expected one or more finite numbers above 0"):
            attach(student, Wide(), tap=shares)  # type: ignore[arg-type]
