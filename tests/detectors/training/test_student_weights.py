from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.tiny_detector import tiny_detector
from support.tiny_run import tiny_recipe
from torch import Tensor, nn

from detectors.detector import Detector
from detectors.training import assemble
from detectors.training.recipe import recipe_for
from detectors.training.student_weights import TRAINED, load_student_weights, save_student_weights
from vfmdistill.errors import InputError, WeightsError


class Student(nn.Module):
    """A frozen stem, a branch that nothing is read from, norms without parameters, and weights of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).requires_grad_(False)
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False))
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=False))
        self.head = nn.Conv2d(4, 4, 1)
        self.tied = nn.Module()
        self.tied.trained, self.tied.untrained = self.body[0].weight, self.branch[0].weight
        self.register_buffer("mean", torch.zeros(3))


def trained_in(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as file:
        names: list[str] = json.loads(file.metadata()[TRAINED])
    return names


def test_what_was_trained_is_what_moved_and_what_belongs_to_it(tmp_path: Path) -> None:
    student, path = Student(), tmp_path / "new" / "student.safetensors"
    names = save_student_weights(student, list(student.body.parameters()), path, {"teacher": "t"})
    assert names == trained_in(path)
    statistics = ["running_mean", "running_var", "num_batches_tracked"]
    assert sorted(names) == sorted(
        ["mean", "stem.0.weight", "stem.0.bias", "stem.1.weight", "stem.1.bias", "body.0.weight", "body.0.bias"]
        + [f"{part}.1.{name}" for part in ("stem", "body") for name in statistics]
        + ["tied.trained"]
    )
    state = load_file(path)
    assert state.keys() == student.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["teacher"] == "t"


def test_a_file_that_cannot_be_written_is_an_error_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student.safetensors"
    save_student_weights(nn.Linear(2, 2), [], path, {})
    before = path.read_bytes()

    def full(tensors: object, temporary: Path, metadata: object) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(InputError, match=r"cannot be written to .*No space left.*give a place that can"):
        save_student_weights(nn.Linear(2, 2), [], path, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def other_detector(classes: int = 2) -> Detector:
    """A detector whose every tensor differs from those of the `tiny_detector`, if it is one of numbers drawn."""
    model = tiny_detector(num_classes=classes)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(1.0)
    return model


def taken_over(model: Detector, source: dict[str, Tensor], before: dict[str, Tensor]) -> set[str]:
    """Return which tensors of a model are now those of the source; all others must be as before."""
    after = model.state_dict()
    same = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert all(torch.equal(after[key], source[key]) for key in same)
    return {key.partition(".")[0] for key in same}


@pytest.mark.parametrize(
    "kind", ["student.safetensors", "state.pth", "wrapped.pth", "backbone.pth", "timm.safetensors"]
)
def test_what_fits_by_name_and_shape_is_taken(tmp_path: Path, kind: str) -> None:
    given, path = other_detector(), tmp_path / kind
    state = given.state_dict()
    backbone = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    if kind == "student.safetensors":
        save_student_weights(given, list(given.encoder.parameters()), path, {})
    elif kind == "timm.safetensors":  # as a whole network of timm has it, with a head
        save_file(
            {"head.fc.weight": torch.zeros(2), **{k.replace("stages_", "stages."): backbone[k] for k in backbone}}, path
        )
    else:
        torch.save({"state.pth": state, "wrapped.pth": {"model": state}, "backbone.pth": backbone}[kind], path)
    model = tiny_detector()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_student_weights(model, path)
    wanted = {
        "student.safetensors": {"encoder"}, "state.pth": {"backbone", "encoder", "decoder"},
        "wrapped.pth": {"backbone", "encoder", "decoder"}, "backbone.pth": {"backbone"},
        "timm.safetensors": {"backbone"},
    }[kind]  # fmt: skip
    assert taken_over(model, state, before) == wanted
    assert set(report.taken) | set(report.missing) == before.keys()
    assert not set(report.taken) & set(report.missing)
    assert {key.partition(".")[0] for key in report.taken} == wanted
    if "decoder" in wanted:  # scores of five classes where two were trained
        assert "left aside in the file, of another shape in the detector: decoder (" in str(report)
        assert report.left["decoder.selection.score_head.bias"] == "of another shape in the detector"
    if kind == "timm.safetensors":
        assert report.left == {"head.fc.weight": "unknown to the detector"}
    if wanted == {"backbone"}:
        assert str(report).splitlines()[:2] == [
            f"{len(backbone)} tensors filled: backbone ({len(backbone)})",
            f"{len(state) - len(backbone)} not given, which stay as they were drawn: encoder (234), decoder (88)",
        ]


def test_a_file_of_which_nothing_fits_changes_nothing(tmp_path: Path) -> None:
    model, path = tiny_detector(), tmp_path / "other.safetensors"
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_file({"layer1.weight": torch.zeros(2), "decoder.selection.score_head.bias": torch.zeros(7)}, path)
    with pytest.raises(WeightsError) as caught:
        load_student_weights(model, path)
    for words in (
        "fits a 'deim_n' by name and shape (of another shape in the detector: decoder (1); unknown to",
        "unknown to the detector: layer1 (1))",
        "Expected names of the detector, backbone (312), encoder (234), decoder (88), or of its backbone alone",
        "leave out --init",
    ):
        assert words in str(caught.value)
    save_student_weights(other_detector(), [], path, {})
    with pytest.raises(WeightsError, match="not trained there"):
        load_student_weights(model, path)
    save_file({"mean": torch.zeros(3)}, path, {TRAINED: "everything"})
    with pytest.raises(WeightsError, match="trained='everything'; expected a JSON list of names"):
        load_student_weights(model, path)
    path.write_text("no tensors")
    with pytest.raises(WeightsError, match="could not be read"):
        load_student_weights(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_recipe_with_two_starts_is_refused() -> None:
    with pytest.raises(InputError, match="init's those of a part: leave out one of them"):
        recipe_for("rtdetrv4_s", weights="detector.pth", init="student.safetensors")


def test_a_missing_file_shows_before_the_data_are_looked_through(toy: Path, tmp_path: Path) -> None:
    for missing in ("nowhere.safetensors", tmp_path):
        with pytest.raises(
            WeightsError, match=r"there is no file .* to start from\. Expected .* folders go to --weights"
        ):
            assemble(tiny_recipe(toy, tmp_path / "run", init=missing))
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_does_not_load_the_student_again(toy: Path, tmp_path: Path) -> None:
    student = tmp_path / "student.pth"
    model = tiny_detector()
    torch.save({f"backbone.{key}": value + 1 for key, value in model.backbone.state_dict().items()}, student)
    recipe = tiny_recipe(toy, tmp_path / "run", model="deim_n", init=student, epochs=1, plain_epochs=0)
    with assemble(recipe) as trainer:
        trainer.fit()
        ended = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    with assemble(recipe.model_copy(update={"resume": True, "init": Path("moved")})) as trainer:
        assert trainer.epoch == 1
        assert all(torch.equal(value, ended[key]) for key, value in trainer.model.state_dict().items())


def test_weights_of_the_backbone_stay_where_the_student_has_none(toy: Path, tmp_path: Path) -> None:
    own = tiny_detector().backbone.state_dict()
    backbone, student = tmp_path / "backbone.pth", tmp_path / "student.pth"
    torch.save(own, backbone)
    first = next(iter(own))
    torch.save({f"backbone.{first}": own[first] + 1}, student)
    recipe = tiny_recipe(toy, tmp_path / "run", model="deim_n", backbone_weights=backbone, init=student, teacher=None)
    with assemble(recipe) as trainer:
        ours = trainer.model.backbone.state_dict()
    assert torch.equal(ours.pop(first), own.pop(first) + 1)
    assert all(torch.equal(value, own[key]) for key, value in ours.items())
