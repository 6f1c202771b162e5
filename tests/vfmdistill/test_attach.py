from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.overrides import TorchFunctionMode

import vfmdistill
from vfmdistill import (
    ByPathAdapter,
    CaptureError,
    DistillError,
    FixedWeight,
    GradientModulator,
    InputError,
    SemanticInjector,
    Tap,
    Teacher,
    UnknownNameError,
    WeightsError,
    attach,
    gradient_share,
)

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
READS = {"item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__float__", "__int__", "__index__"}
HOOK_DICTS = [
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
]


class Classifier(nn.Module):
    """A student with running statistics and dropout; stride 16, 8 channels in the middle, 12 at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 12, 4, 4), nn.BatchNorm2d(12), nn.Dropout(0.2))
        self.relu = nn.ReLU()
        self.unused = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.relu(self.body(self.stem(images))).mean((2, 3)))
        return logits


class Wide(nn.Conv2d):
    """A teacher of 10 channels and stride 8."""

    def __init__(self) -> None:
        super().__init__(3, 10, 8, 8)


class Narrow(nn.Conv2d):
    """A teacher of 6 channels and stride 16."""

    def __init__(self) -> None:
        super().__init__(3, 6, 16, 16)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def student() -> Classifier:
    return Classifier()


def hooks(module: Module) -> int:
    return sum(len(getattr(part, name)) for part in module.modules() for name in HOOK_DICTS)


def same_state(one: Module, other: Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    flags = zip(one.modules(), other.modules(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs) and all(
        a.training == b.training for a, b in flags
    )


def step(student: Module, distiller: vfmdistill.Distiller, images: Tensor = IMAGES) -> Tensor:
    loss = student(images).logsumexp(1).mean() + distiller.loss(images)
    loss.backward()
    distiller.observe()
    return loss.detach()


# The student is given back as it was.


def _enter(student: Module, teacher: Module) -> None:
    with attach(student, teacher, tap="body") as distiller:
        assert hooks(student) == 1
        assert list(distiller.parameters())


def _enter_and_raise(student: Module, teacher: Module) -> None:
    with pytest.raises(KeyError, match="stop"), attach(student, teacher, tap="body"):
        raise KeyError("stop")


def _detach_twice(student: Module, teacher: Module) -> None:
    distiller = attach(student, teacher, tap=["stem", "body"])
    assert hooks(student) == 2
    distiller.detach()
    distiller.detach()


def _nest(student: Module, teacher: Module) -> None:
    with attach(student, teacher, tap="stem"), attach(student, teacher, tap="body"):
        assert hooks(student) == 2


def _fail_half_way(student: Module, teacher: Module) -> None:
    with pytest.raises(InputError, match="an injector from 12 to 7"):
        attach(student, teacher, tap="body", injector=SemanticInjector(12, 7, projector=nn.Identity()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("use", [_enter, _enter_and_raise, _detach_twice, _nest, _fail_half_way])
def test_leaves_no_trace(student: Classifier, training: bool, use: Callable[[Module, Module], None]) -> None:
    student.train(training)
    student.stem[1].eval()
    twin, teacher = copy.deepcopy(student), Teacher(Wide())
    random_state = torch.get_rng_state()
    use(student, teacher)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert hooks(student) == 0
    assert same_state(student, twin)
    outputs = student(IMAGES)
    torch.set_rng_state(random_state)
    assert torch.equal(outputs, twin(IMAGES))
    assert same_state(student, twin)


def test_nothing_is_touched_while_attached(student: Classifier) -> None:
    twin = copy.deepcopy(student)
    with attach(student, Wide(), tap="body"):
        assert same_state(student, twin)
        random_state = torch.get_rng_state()
        outputs = student(IMAGES)
        torch.set_rng_state(random_state)
        assert torch.equal(outputs, twin(IMAGES))
        assert same_state(student, twin)


def test_training_changes_the_student_only_as_an_optimizer_does(student: Classifier) -> None:
    keys = list(student.state_dict())
    with attach(student, Wide(), tap="body", modulator=1) as distiller:
        optimizer = torch.optim.SGD([*student.parameters(), *distiller.parameters()], lr=0.1)
        step(student, distiller)
        optimizer.step()
        assert list(student.state_dict()) == keys
    twin = Classifier()
    twin.load_state_dict(student.state_dict())
    assert hooks(student) == 0
    assert torch.equal(student.eval()(IMAGES), twin.eval()(IMAGES))


def test_injector_follows_the_seed_and_the_rng_does_not_move(student: Classifier) -> None:
    teacher = Teacher(Wide())
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        with attach(student, teacher, tap="body") as distiller:
            weights.append(next(distiller.parameters()).detach().clone())
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# The loss.


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
            step(student, distiller, torch.rand(2, 3, height, width))


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


# Observing and updating.


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


def test_default_modulator_measures_first(student: Classifier) -> None:
    with attach(student, Wide(), tap="body") as distiller:
        assert isinstance(distiller.modulator, GradientModulator)
        reasons = []
        for _ in range(2):
            step(student, distiller)
            reasons.append(distiller.update().reason)
        assert reasons == ["calibrating", "calibrated"]
        distiller.finish_adapting()
        assert distiller.update().reason == "final_phase"


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


# Saving and resuming.


@pytest.mark.parametrize("modulator", [None, 2.0])
def test_resumes_exactly(student: Classifier, modulator: float | None) -> None:
    teacher = Teacher(Wide())
    with attach(student, teacher, tap="body", modulator=modulator) as distiller:
        step(student, distiller)
        distiller.update()
        step(student, distiller)
        saved = copy.deepcopy(distiller.state_dict())
        assert list(saved) == ["injectors", "modulator"]
        assert all(isinstance(value, Tensor) for value in saved["injectors"].values())
        assert sum(value.numel() for value in saved["injectors"].values()) == 12 * 10 + 10  # nothing of the teacher
        saved["modulator"] = json.loads(json.dumps(saved["modulator"]))
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
        (lambda state: state.pop("modulator"), r"a distiller state with \['injectors'\]"),
        (lambda state: state["injectors"].popitem(), "missing .*bias"),
        (lambda state: state["injectors"].update(more=IMAGES), "unexpected more"),
        (
            lambda state: [value.resize_(10, 3) for value in state["injectors"].values()],
            r"is \(10, 3\) where \(10, 12\)",
        ),
        (lambda state: state.update(modulator=FixedWeight(1.0).state_dict()), "'FixedWeight' modulator"),
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
        for key, value in distiller.state_dict()["injectors"].items():
            assert torch.equal(value, before["injectors"][key])


# What attach takes.


def test_wrapped_students_are_unwrapped(student: Classifier) -> None:
    with attach(torch.compile(student), Wide(), tap="body") as distiller:
        assert distiller.student is student
    with pytest.raises(InputError, match="DistributedDataParallel"):
        attach(nn.DataParallel(student), Wide(), tap="body")
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        attach("resnet18", Wide(), tap="body")  # type: ignore[arg-type]


def test_student_that_is_its_own_adapter() -> None:
    class Own(Classifier):
        def taps(self, student: Module) -> Sequence[Tap]:
            return [Tap("body.0", self.body[0])]

        def feature_map(self, tap: Tap, output: Any, images: Tensor) -> Tensor:
            half: Tensor = output[:, :6]
            return half

    student = Own()
    with attach(student, Wide()) as distiller:
        assert [tap.path for tap in distiller.taps] == ["body.0"]
        assert [injector.student_dim for injector in distiller.injectors.values()] == [6]
        step(student, distiller)
    with attach(student, Wide(), tap="stem") as distiller:  # the tap is the user's, the reading the adapter's
        assert [injector.student_dim for injector in distiller.injectors.values()] == [6]
    with attach(student, Wide(), adapter=ByPathAdapter(["body"])) as distiller:
        assert [injector.student_dim for injector in distiller.injectors.values()] == [12]


def test_injectors_made_by_the_caller(student: Classifier) -> None:
    given = SemanticInjector(12, 10, objective="mse")
    with attach(student, Wide(), tap="body", injector=given) as distiller:
        assert list(distiller.injectors.values()) == [given]
    make = functools.partial(SemanticInjector, projector="conv")
    with attach(student, {Wide(): 1, Narrow(): 1}, tap="body", injector=make) as distiller:
        assert [injector.teacher_dim for injector in distiller.injectors.values()] == [10, 6]
        step(student, distiller)


def test_probe_of_the_caller() -> None:
    class Picky(Classifier):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[-1] != 48:
                raise ValueError("only 48")
            return super().forward(images)

    with pytest.raises(InputError, match=r"failed on a probe of shape \(1, 3, 224, 224\).*ValueError: only 48.*probe="):
        attach(Picky(), Wide(), tap="body")
    with attach(Picky(), Wide(), tap="body", probe=torch.rand(2, 3, 48, 48)) as distiller:
        step(distiller.student, distiller, torch.rand(2, 3, 48, 48))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tap": "bodi"}, UnknownNameError, "unknown tap 'bodi'; nearest: body"),
        ({}, InputError, r"no adapter knows a Classifier\. Pass tap=.*for example 'relu' \(12 × 14 × 14\), 'body' \("),
        ({"tap": "unused"}, CaptureError, "tap 'unused' did not fire"),
        ({"tap": "head"}, CaptureError, r"tap 'head' \(Linear\) gave a tensor of shape \(1, 4\)"),
        ({"tap": "relu"}, InputError, "tap 'relu' .* no trainable parameters.*: a fixed λ"),
        ({"tap": "body", "modulator": "auto"}, InputError, "expected a GradientModulator"),
        ({"tap": "body", "modulator": -1.0}, InputError, "weight=-1.0"),
        ({"tap": "body", "adapter": ByPathAdapter}, InputError, "is a class"),
        ({"adapter": object()}, InputError, r"has no taps\(\)"),
        ({"tap": "body", "injector": nn.Linear(12, 10)}, InputError, "injector: a Linear; expected"),
        ({"tap": "body", "injector": "mse"}, InputError, "injector: a str; expected"),
        ({"tap": ["stem", "body"], "injector": SemanticInjector(12, 10)}, InputError, r"Pass a function"),
        ({"tap": "body", "teacher": {}}, InputError, "teacher shares"),
        ({"tap": "body", "teacher": {Wide(): 0.0}}, InputError, "teacher shares"),
        ({"tap": "body", "teacher": [Wide()]}, InputError, "teacher: a list; expected a name"),
        ({"tap": "body", "teacher": "dinov2_vitb41"}, UnknownNameError, "unknown teacher .*dinov2_vitb14"),
    ],
)
def test_bad_arguments_leave_no_hook(
    student: Classifier, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attach(student, **{"teacher": Wide(), **arguments})
    assert hooks(student) == 0


def test_a_tap_without_parameters_takes_a_fixed_weight(student: Classifier) -> None:
    with attach(student, Wide(), tap="relu", modulator=1.0) as distiller:
        step(student, distiller)
        assert distiller.metrics()["share"] == 0


def test_a_student_is_not_its_own_teacher(student: Classifier) -> None:
    with pytest.raises(InputError, match="give a deep copy"):
        attach(student, student.stem, tap="body")
    assert all(parameter.requires_grad for parameter in student.parameters())
    with attach(student, copy.deepcopy(student.stem), tap="body") as distiller:
        step(student, distiller)


def test_a_student_without_parameters() -> None:
    with pytest.raises(InputError, match="no parameters"):
        attach(nn.AvgPool2d(16), Wide(), tap="")


# Calls that cannot be answered.


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


def test_a_wrong_input_range_and_a_student_without_parameters_show_at_attach() -> None:
    with pytest.raises(InputError, match="input_range='unti' is not known"):
        vfmdistill.attach(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 32, 32), tap="", input_range="unti")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing to distil into"):
        vfmdistill.attach(nn.ReLU(), nn.Conv2d(3, 4, 32, 32), tap="", probe=torch.zeros(1, 3, 64, 64))
