from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from support.students import IMAGES, Classifier, Narrow, Wide, hooks, same_state, step
from torch import Tensor, nn
from torch.nn import Module

import vfmdistill
from vfmdistill import (
    ByPathAdapter,
    CaptureError,
    GradientModulator,
    InputError,
    SemanticInjector,
    Tap,
    Teacher,
    UnknownNameError,
    attach,
)


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


def test_an_unknown_student_is_inspected_and_the_choice_is_said_once(student: Classifier) -> None:
    with pytest.warns(
        UserWarning, match=r"no adapter knows a Classifier, so attach takes tap='body' \(Sequential, 1 ×"
    ):
        distiller = attach(student, Wide())
    assert [tap.path for tap in distiller.taps] == [vfmdistill.inspect(student).chosen[0].path] == ["body"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(student, distiller)
        distiller.update()
        attach(student, Wide(), tap="body").detach()
    distiller.detach()
    assert hooks(student) == 0


def test_the_warning_points_at_the_line_that_attaches(student: Classifier) -> None:
    with pytest.warns(UserWarning, match="no tap is given") as warned:
        attach(student, Wide()).detach()
    assert [warning.filename for warning in warned] == [__file__]


def test_a_student_without_any_map_is_told_where_to_look() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(InputError, match=r"knows a Sequential, and no module gives a map .*inspect\(student\)"):
        attach(flat, Wide(), probe=torch.zeros(1, 3, 32, 32))
    assert hooks(flat) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tap": "bodi"}, UnknownNameError, "unknown tap 'bodi'; nearest: body"),
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


def test_a_wrong_input_range_and_a_student_without_parameters_show_at_attach() -> None:
    with pytest.raises(InputError, match="input_range='unti' is not known"):
        vfmdistill.attach(nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 32, 32), tap="", input_range="unti")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing to distil into"):
        vfmdistill.attach(nn.ReLU(), nn.Conv2d(3, 4, 32, 32), tap="", probe=torch.zeros(1, 3, 64, 64))


def test_each_teacher_may_have_a_weight_of_its_own(student: Classifier) -> None:
    wide, narrow = Teacher(Wide()), Teacher(Narrow())
    moving = GradientModulator(5.0, 11.0, 1.0, 20.0)
    modulators = {narrow.spec.name: 2.0, wide.spec.name: moving}
    with attach(student, {wide: 3, narrow: 1}, tap="body", modulator=modulators) as distiller:
        loss = step(student, distiller)
        metrics = distiller.metrics()
        first, second = distiller.teachers
        assert metrics["weight"] == distiller.weight == pytest.approx(0.75 * 5 + 0.25 * 2)
        assert (metrics[f"weight/{first}"], metrics[f"weight/{second}"]) == (5.0, 2.0)
        assert metrics[f"share/{first}"] + metrics[f"share/{second}"] == pytest.approx(metrics["share"])
        assert metrics[f"share/{first}"] > metrics[f"share/{second}"] > 0
        parts = [metrics[f"semantic_loss/{name}:body"] for name in (first, second)]
        assert metrics["semantic_loss"] == pytest.approx(0.75 * parts[0] + 0.25 * parts[1])
        assert loss.isfinite()
        update = distiller.update()
        assert update.teachers[first].weight == moving.weight == distiller.modulators[first].weight != 5
        assert update.teachers[second].weight == 2
        with pytest.raises(InputError, match="Choose one from `modulators`"):
            _ = distiller.modulator


def test_modulators_that_do_not_fit_the_teachers(student: Classifier) -> None:
    wide, narrow = Teacher(Wide()), Teacher(Narrow())
    names = [wide.spec.name, narrow.spec.name]
    for modulators in ({names[0]: 1.0}, {}, dict.fromkeys([*names, "third"], 1.0)):
        with pytest.raises(InputError, match="expected one for each of 'Wide', 'Narrow'"):
            attach(student, {wide: 1, narrow: 1}, tap="body", modulator=modulators)
    shared = GradientModulator()
    with pytest.raises(InputError, match="one modulator under several names"):
        attach(student, {wide: 1, narrow: 1}, tap="body", modulator=dict.fromkeys(names, shared))
    assert hooks(student) == 0


def test_names_of_teachers_never_collide(student: Classifier) -> None:
    class Third(Wide):
        pass

    Third.__name__ = "Wide-2"
    with attach(student, {Third(): 1, Wide(): 1, Wide(): 2}, tap="body") as distiller:
        assert list(distiller.teachers) == ["Wide-2", "Wide", "Wide-3"]
        step(student, distiller)


@pytest.mark.parametrize("share", ["1", None, True, 0, -1.0, float("nan"), float("inf")])
def test_shares_are_finite_numbers_above_0(student: Classifier, share: Any) -> None:
    with pytest.raises(InputError, match="expected one or more finite numbers above 0"):
        attach(student, {Wide(): 1, Narrow(): share}, tap="body")


def test_every_is_checked_before_a_teacher_is_built(student: Classifier) -> None:
    with pytest.raises(InputError, match="every=0; expected 1"):
        attach(student, "no-such-teacher", tap="body", every=0)
