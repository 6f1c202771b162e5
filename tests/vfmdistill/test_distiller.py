from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support.students import IMAGES, Classifier, Narrow, Wide, hooks, same_state, step
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vfmdistill import (
    ByPathAdapter,
    CaptureError,
    DistillError,
    FixedWeight,
    GradientModulator,
    InputError,
    Tap,
    Teacher,
    WeightsError,
    attach,
    gradient_share,
)

READS = {"item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__"}


def test_loss_is_the_weighted_mean_cosine_on_the_students_grid(student: Classifier) -> None:
    taken: list[Tensor] = []
    student.body.register_forward_hook(lambda module, args, output: taken.append(output))
    with attach(student, Wide(), tap="body", modulator=3.0) as distiller:
        student(IMAGES)
        loss = distiller.loss(IMAGES)
        injector = next(iter(distiller.injectors.values()))
        teacher_map = distiller.teacher(IMAGES, grid=(4, 6), input_range="unit").map
        projected = injector.projector(taken[-1])
        expected = 3 * (1 - torch.cosine_similarity(projected, teacher_map, dim=1)).mean()
        torch.testing.assert_close(loss, expected)
        assert distiller.metrics() == {"weight": 3.0, "semantic_loss": pytest.approx(loss.item() / 3)}


def test_loss_reaches_the_tap_and_nothing_after_it_nor_the_teacher(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        student(IMAGES)
        distiller.loss(IMAGES).backward()
        trained = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert {"stem.0.weight", "body.0.weight", "body.1.weight"} <= trained
        assert not any(name.startswith(("head", "unused")) for name in trained)
        assert all(p.grad is not None for p in distiller.parameters())
        assert all(not p.requires_grad and p.grad is None for p in distiller.teacher.parameters())


def test_several_teachers_and_taps(student: Classifier) -> None:
    wide, narrow = Teacher(Wide()), Teacher(Narrow())
    with attach(student, {wide: 3, narrow: 1}, tap=["stem", "body"], modulator=2.0) as distiller:
        student(IMAGES)
        loss = distiller.loss(IMAGES)
        metrics = distiller.metrics()
        assert len(distiller.injectors) == 4
        names = list(distiller.teachers)
        assert [distiller.teachers[name] for name in names] == [wide, narrow]
        parts = [[metrics[f"semantic_loss/{name}:{tap}"] for tap in ("stem", "body")] for name in names]
        expected = 0.75 * sum(parts[0]) / 2 + 0.25 * sum(parts[1]) / 2
        assert metrics["semantic_loss"] == pytest.approx(expected)
        assert loss.item() == pytest.approx(2 * expected)
        with pytest.raises(InputError, match="several teachers"):
            _ = distiller.teacher


def test_several_taps_share_the_loss(student: Classifier) -> None:
    with attach(student, Wide(), tap={"stem": 1, "body": 3}, modulator=1.0) as distiller:
        step(student, distiller)
        metrics = distiller.metrics()
        stem, body = metrics["semantic_loss/Wide:stem"], metrics["semantic_loss/Wide:body"]
        assert metrics["semantic_loss"] == pytest.approx(0.25 * stem + 0.75 * body)
    for shares in ({}, {"stem": 0}, {"stem": -1, "body": 1}, {"stem": float("nan")}, {"stem": "1"}):
        with pytest.raises(InputError, match=r"tap shares .*; expected one or more finite numbers above 0"):
            attach(student, Wide(), tap=shares)  # type: ignore[arg-type]


def test_two_teachers_of_one_kind_keep_apart(student: Classifier) -> None:
    with attach(student, {Wide(): 1, Wide(): 1}, tap="body") as distiller:
        assert len(distiller.teachers) == len(distiller.injectors) == 2
        step(student, distiller)


def test_the_latest_training_forward_counts(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        student(IMAGES[:1])
        student(IMAGES)
        student.eval()(IMAGES[:1])
        distiller_loss = distiller.loss(student.train() and IMAGES)
        assert distiller_loss.requires_grad


def test_image_size_may_change_between_steps(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        for height, width in ((64, 64), (32, 128), (96, 48)):
            assert step(student, distiller, torch.rand(2, 3, height, width)) > 0
            ((projected, teacher_map),) = distiller.aligned_maps(torch.rand(2, 3, height, width)).values()
            assert projected.shape[2:] == teacher_map.shape[2:] == (height // 16, width // 16)


def test_double_precision_student() -> None:
    student = Classifier().double()
    with attach(student, Wide(), tap="body") as distiller:
        assert {p.dtype for p in distiller.parameters()} == {torch.float64}


def test_autocast_and_grad_scaler(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        scaler = torch.amp.GradScaler("cpu")
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=0.1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = student(IMAGES).float().logsumexp(1).mean() + distiller.loss(IMAGES)
        scaler.scale(loss).backward()
        distiller.observe()
        scaler.step(optimizer)
        scaler.update()
        assert loss.dtype == torch.float32
        assert {p.dtype for p in distiller.parameters()} == {torch.float32}
        assert 0 < distiller.metrics()["share"] < 100


def test_deep_copy_of_the_student_does_not_feed_the_distiller(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        average = copy.deepcopy(student)
        average(IMAGES)
        with pytest.raises(CaptureError, match="not called"):
            distiller.loss(IMAGES)


def test_aligned_maps_are_what_the_loss_compares(student: Classifier) -> None:
    student.eval()
    twin = copy.deepcopy(student)
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        maps = distiller.aligned_maps(IMAGES)
        assert maps.keys() == distiller.injectors.keys()
        (projected, teacher_map) = next(iter(maps.values()))
        assert projected.shape == teacher_map.shape == (2, 10, 4, 6)
        assert same_state(student, twin)
        student.train()
        for module in student.body:
            module.eval()
        student.stem[1].eval()  # the loss in training mode, with the statistics of eval mode
        student(IMAGES)
        expected = 1 - torch.cosine_similarity(projected, teacher_map, dim=1).mean()
        torch.testing.assert_close(distiller.loss(IMAGES), expected)
    assert distiller.aligned_maps(IMAGES).keys() == maps.keys()
    assert hooks(student) == 0


def test_share_is_that_of_the_taps_over_all_trained_parameters(student: Classifier) -> None:
    student.stem[0].requires_grad_(False)
    student.stem[0].weight.grad = torch.full_like(student.stem[0].weight, 1e3)  # left over from before freezing
    modulator = GradientModulator(5.0, 11.0, 1.0, 20.0)
    with attach(student, Wide(), tap=["body.0", "body"], modulator=modulator) as distiller:
        step(student, distiller)

        def norm(parameters: Iterator[nn.Parameter]) -> float:
            return sum(p.grad.abs().sum().item() for p in parameters if p.requires_grad and p.grad is not None)

        tap = norm(student.body.parameters())
        expected = 100 * tap / (norm(student.parameters()) + norm(distiller.parameters()))
        assert distiller.metrics()["share"] == pytest.approx(expected, rel=1e-5)
        update = distiller.update()
        assert update.share == pytest.approx(expected, rel=1e-5)
        assert update.reason == "lowered"
        assert distiller.weight == modulator.weight == update.weight < 5


def test_shares_of_the_layers(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        step(student, distiller)
        shares = distiller.layer_shares()
        assert list(shares) == ["stem", "body", "unused", "head", "injectors"]
        assert sum(shares.values()) == pytest.approx(100)
        assert shares["body"] == pytest.approx(distiller.metrics()["share"])
        assert shares["unused"] == 0
        assert {"body.0", "body.1"} <= distiller.layer_shares(depth=2).keys()


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    shares, gradients = [], []
    for parts in (1, 2):
        torch.manual_seed(0)
        student = Classifier()
        for norm in (student.stem[1], student.body[1], student.body[2]):
            norm.eval()
        with attach(student, Teacher(Wide()), tap="body", modulator=2.0) as distiller:
            for images in IMAGES.chunk(parts):
                loss = student(images).logsumexp(1).mean() + distiller.loss(images)
                (loss / parts).backward()
                distiller.observe()
            shares.append(distiller.metrics()["share"])
            gradients.append([p.grad for p in distiller.parameters()])
    assert shares[0] == pytest.approx(shares[1], rel=1e-4)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_update_without_observe(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        assert distiller.update().reason == "no_observation"  # nothing was computed, so nothing was missed
        student(IMAGES)
        distiller.loss(IMAGES)
        with pytest.raises(DistillError, match=r"Call distiller\.observe\(\) after every"):
            distiller.update()
    with attach(student, Wide(), tap="body", modulator=1.0) as distiller:
        student(IMAGES)
        distiller.loss(IMAGES)
        assert distiller.update().reason == "no_observation"


def test_training_brings_the_maps_together(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        optimizer = torch.optim.AdamW([*student.parameters(), *distiller.parameters()], lr=1e-2)
        losses = []
        for _ in range(30):
            optimizer.zero_grad()
            step(student, distiller)
            optimizer.step()
            losses.append(distiller.metrics()["semantic_loss"])
        assert losses[-1] < 0.5 * losses[0]


def test_the_step_reads_nothing_from_the_device(student: Classifier) -> None:
    class NoReads(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            assert func.__name__ not in READS, func.__name__
            return func(*args, **(kwargs or {}))

    with attach(student, Wide(), tap=["stem", "body"]) as distiller, NoReads():
        step(student, distiller)
        with pytest.raises(AssertionError, match="tolist"):
            distiller.metrics()


@pytest.mark.parametrize("modulator", [None, 2.0])
def test_resumes_exactly(student: Classifier, modulator: float | None) -> None:
    teacher = Teacher(Wide())
    with attach(student, teacher, tap="body", modulator=modulator) as distiller:
        step(student, distiller)
        distiller.update()
        step(student, distiller)
        saved = copy.deepcopy(distiller.state_dict())
        assert list(saved) == ["injectors", "modulator", "teaching"]
        assert all(isinstance(value, Tensor) for value in saved["injectors"].values())
        assert sum(value.numel() for value in saved["injectors"].values()) == 12 * 10 + 10  # nothing of the teacher
        for part in ("modulator", "teaching"):
            saved[part] = json.loads(json.dumps(saved[part]))
        update = distiller.update()
    torch.manual_seed(1)
    with attach(student, teacher, tap="body", modulator=modulator) as distiller:
        distiller.load_state_dict(saved)
        for key, value in distiller.state_dict()["injectors"].items():
            assert torch.equal(value, saved["injectors"][key])
        assert distiller.update() == update
        assert [name for name, _ in distiller.named_parameters()] == [f"injectors.{key}" for key in saved["injectors"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("modulator"), r"a distiller state with \['injectors', 'teaching'\]"),
        (lambda state: state["injectors"].popitem(), "missing .*bias"),
        (lambda state: state["injectors"].update(more=IMAGES), "unexpected more"),
        (
            lambda state: [value.resize_(10, 3) for value in state["injectors"].values()],
            r"is \(10, 3\) where \(10, 12\)",
        ),
        (lambda state: state.update(modulator=FixedWeight(1.0).state_dict()), "'FixedWeight' modulator"),
        (lambda state: state.update(modulator=None), "a modulator state of type NoneType"),
        (lambda state: state.update(modulator={"kind": "by_teacher"}), "the state of a 'by_teacher' modulator"),
        (lambda state: state.update(teaching=None), "the state of other teachers, None"),
        (lambda state: state["teaching"].update(steps="7"), "the state of other teachers"),
    ],
)
def test_states_that_do_not_fit_change_nothing(
    student: Classifier, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        before = copy.deepcopy(distiller.state_dict())
        state = copy.deepcopy(before)
        change(state)
        with pytest.raises(WeightsError, match=message):
            distiller.load_state_dict(state)
        assert distiller.state_dict()["modulator"] == before["modulator"]
        assert distiller.state_dict()["teaching"] == before["teaching"]
        for key, value in distiller.state_dict()["injectors"].items():
            assert torch.equal(value, before["injectors"][key])


def test_loss_says_what_is_wrong(student: Classifier) -> None:
    distiller = attach(student, Wide(), tap="body")
    with pytest.raises(CaptureError, match="tap 'body' gave nothing since the last loss"):
        distiller.loss(IMAGES)
    student(IMAGES)
    distiller.loss(IMAGES)
    with pytest.raises(CaptureError, match="tap 'body' gave nothing since the last loss"):
        distiller.loss(IMAGES)
    student(IMAGES)
    with pytest.raises(CaptureError, match=r"map of shape \(2, 12, 4, 6\) for images \(1, 3, 64, 96\)"):
        distiller.loss(IMAGES[:1])
    with pytest.raises(InputError, match="images: a list"):
        distiller.loss([IMAGES])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="images on meta"):
        distiller.loss(IMAGES.to("meta"))
    student.eval()
    with pytest.raises(CaptureError, match=r"in eval mode.*Call student\.train\(\)"):
        distiller.loss(IMAGES)
    distiller.detach()
    with pytest.raises(DistillError, match="after detach"):
        distiller.loss(IMAGES)


def test_an_adapter_that_detaches(student: Classifier) -> None:
    class Detaches(ByPathAdapter):
        def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
            return super().feature_map(tap, output, images).detach()

    with attach(student, Wide(), adapter=Detaches(["body"])) as distiller:
        student(IMAGES)
        with pytest.raises(CaptureError, match="must not detach"):
            distiller.loss(IMAGES)


def test_one_teacher_serves_two_students(student: Classifier) -> None:
    other, teacher = Classifier(), Teacher(Wide())
    with attach(student, teacher, tap="body") as first, attach(other, teacher, tap="stem") as second:
        student(IMAGES)
        other(IMAGES)
        assert first.loss(IMAGES) != second.loss(IMAGES)


def test_the_share_needs_no_distiller(student: Classifier) -> None:
    student(IMAGES).sum().backward()
    assert 0 < gradient_share(student.body.parameters(), student.parameters()).item() < 100


def test_discarded_gradients_need_no_observation(student: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vfmdistill.observation._several_processes", lambda: True)
    for discards in (True, False):
        with attach(student, Wide(), tap="body") as distiller:
            for _ in range(2):
                student(IMAGES)
                if distiller.metrics().keys() > {"weight"} and not discards:
                    with pytest.raises(DistillError, match="gradients were used without observe"):
                        distiller.loss(IMAGES)
                    continue
                distiller.loss(IMAGES).backward()
                for parameter in distiller.parameters():
                    parameter.grad = None
                if discards:
                    distiller.discard()
            assert "share" not in distiller.metrics()


def test_an_adapter_may_weigh_the_cells(student: Classifier) -> None:
    class Foreground(ByPathAdapter):
        weights: Tensor | None = None

        def foreground(self, tap: Tap, feature_map: Tensor, images: Tensor) -> Tensor | None:
            assert feature_map.shape[0] == images.shape[0]
            return self.weights

    adapter = Foreground(["body"])
    with attach(student, Wide(), adapter=adapter, modulator=1.0) as distiller:
        maps: list[Tensor] = []
        student.body.register_forward_hook(lambda module, args, output: maps.append(output))
        losses = []
        for weights in (None, torch.ones(2, 4, 6), torch.eye(4, 6).repeat(2, 1, 1)):
            adapter.weights = weights
            student(IMAGES)
            loss = distiller.loss(IMAGES)
            (injector,) = distiller.injectors.values()
            teacher_map = distiller.teacher(IMAGES, grid=(4, 6)).map
            cells = 1 - torch.cosine_similarity(injector.project(maps[-1]), teacher_map, dim=1)
            torch.testing.assert_close(loss, cells[:, range(4), range(4)].mean() if len(losses) == 2 else cells.mean())
            losses.append(loss)
        adapter.weights = torch.ones(2, 6, 4)
        student(IMAGES)
        with pytest.raises(InputError, match=r"weights of shape \(2, 6, 4\)"):
            distiller.loss(IMAGES)


def test_a_state_is_loaded_in_the_middle_of_a_step(student: Classifier) -> None:
    """The gradients of the step before belong to weights that are gone."""
    wide, narrow = Teacher(Wide()), Teacher(Narrow())
    modulators = {"Wide": GradientModulator(5.0, 11.0, 1.0), "Narrow": GradientModulator(5.0, 11.0, 1.0)}
    with attach(student, {wide: 1, narrow: 1}, tap="body", modulator=modulators) as distiller:
        step(student, distiller)
        saved = copy.deepcopy(distiller.state_dict())
        student(IMAGES)
        (1e6 * distiller.loss(IMAGES)).backward()
        distiller.load_state_dict(saved)
        assert distiller._modulation._pulls == {}
        assert distiller.state_dict()["teaching"] == saved["teaching"]
