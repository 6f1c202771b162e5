from pathlib import Path

import pytest
import torch
from support.tiny_run import tiny_recipe
from torch import Tensor

import detectors
from detectors.training.recipe import Recipe
from detectors.training.teaching import attach_teachers, build_teachers, modulator_of

pytestmark = pytest.mark.usefixtures("toy")  # which makes the teachers known


def recipe_of(folder: Path, **fields: object) -> Recipe:
    return tiny_recipe(folder, folder, **fields)


def test_several_teachers_have_shares(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, teacher="tiny=3, tiny2")
    assert recipe.teachers == {"tiny": 3.0, "tiny2": 1.0}
    teachers = build_teachers(recipe)
    assert {teacher.spec.name: share for teacher, share in teachers.items()} == recipe.teachers
    model = detectors.build(recipe.model, num_classes=2, num_denoising=0)
    with attach_teachers(recipe, model, teachers, modulator_of(recipe)) as distiller:
        images = torch.rand(2, 3, 64, 64)
        model.train()(images)
        loss = distiller.loss(images)
        parts = {name: value for name, value in distiller.metrics().items() if name.startswith("semantic_loss/")}
    assert {name.split("/")[1].split(":")[0] for name in parts} == {"tiny", "tiny2"}
    weighted = sum((3 if "tiny:" in name else 1) / 4 * value for name, value in parts.items())
    assert loss.item() == pytest.approx(recipe.distill_weight * weighted, rel=1e-5)


def test_none_trains_without(tmp_path: Path) -> None:
    assert recipe_of(tmp_path, teacher="none").teachers == {}
    assert build_teachers(recipe_of(tmp_path, teacher="none")) == {}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": "tiny=much"}, "the share of teacher 'tiny' is 'much'; expected a number"),
        ({"teacher": "tiny,tiny"}, "teacher 'tiny' is given twice"),
        ({"teacher": "tiny=0"}, "share of teacher 'tiny' is 0; expected a finite number above 0"),
        ({"teacher": "tiny=-1,tiny2"}, "share of teacher 'tiny' is -1"),
        ({"teacher": "tiny=nan"}, "share of teacher 'tiny' is nan"),
        ({"teacher": "tiny="}, "share of teacher 'tiny' is ''; expected a number"),
        ({"teacher": "tiny,,tiny2"}, "a name is empty"),
        ({"teacher": ""}, "a name is empty"),
        ({"teacher": "tiny,tiny2", "teacher_weights": "file.pth"}, "teacher_weights belong to one teacher"),
        ({"teacher": "none", "teacher_weights": "file.pth"}, "teacher_weights needs a teacher"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_of(tmp_path, **fields)


def test_the_recipe_chooses_projector_objective_and_pace(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, projector="conv", objective="mse", teacher_every=2, teacher_precision="bf16")
    teachers = build_teachers(recipe)
    assert {teacher.dtype for teacher in teachers} == {torch.bfloat16}
    model = detectors.build(recipe.model, num_classes=2, num_denoising=0).train()
    images = torch.rand(2, 3, 64, 64)
    losses: list[Tensor] = []
    with attach_teachers(recipe, model, teachers, 1.0) as distiller:
        (injector,) = distiller.injectors.values()
        assert isinstance(injector.projector, torch.nn.Conv2d)
        assert injector.objective.__name__ == "mse"
        for _ in range(3):
            model(images)
            losses.append(distiller.loss(images))
            losses[-1].backward()
            distiller.observe()
    assert [loss.item() > 0 for loss in losses] == [True, False, True]
