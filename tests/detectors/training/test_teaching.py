from pathlib import Path

import pytest
import torch
from support.tiny_run import tiny_recipe
from torch import Tensor

import detectors
from detectors.training.recipe import Recipe
from detectors.training.teaching import attach_teachers, build_teachers, modulator_of
from vfmdistill.errors import UnknownNameError

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
        ({"teacher": "none", "teacher_control": "shuffled"}, "teacher_control needs a teacher"),
        ({"teacher_control": "random", "teacher_weights": "file.pth"}, "leave out teacher_weights"),
        ({"teacher_control": "mean"}, "teacher_control"),
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


def test_the_recipe_chooses_the_tap(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, tap="encoder.top_down.0")
    model = detectors.build(recipe.model, num_classes=2, num_denoising=0).train()
    images = torch.rand(2, 3, 64, 96)
    with attach_teachers(recipe, model, build_teachers(recipe), 1.0) as distiller:
        model(images)
        distiller.loss(images).backward()
        ((projected, taught),) = distiller.aligned_maps(images).values()
    assert projected.shape[2:] == taught.shape[2:] == (4, 6)  # of stride 16, where AIFI's has 32
    assert model.get_parameter("encoder.top_down.0.enter.conv.weight").grad is not None
    unknown = recipe_of(tmp_path, tap="encoder.top_up.0")
    with pytest.raises(UnknownNameError, match=r"encoder\.top_up\.0"):
        attach_teachers(unknown, model, build_teachers(unknown), 1.0)


def test_a_control_stands_in_for_the_teacher(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 64, 64)
    (real,), (shuffled,) = (
        build_teachers(recipe_of(tmp_path, teacher="tiny", teacher_control=control)) for control in (None, "shuffled")
    )
    assert torch.equal(shuffled(images, (2, 2)).map, real(images, (2, 2)).map.roll(2, 0))


def test_a_random_control_is_drawn_from_the_seed(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 56, 56)
    fields = {"teacher": "dinov2_vits14", "teacher_control": "random", "teacher_precision": "fp32"}
    maps = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(maps))  # which must not matter
        (teacher,) = build_teachers(recipe_of(tmp_path, seed=seed, **fields))
        maps.append(teacher(images, (4, 4)).map)
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(maps[0], maps[2], atol=0.1)


def test_the_cache_gives_the_same_features_and_every_teacher_has_its_own(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 64, 64)
    for control in (None, "shuffled"):
        plain, cached = (
            next(iter(build_teachers(recipe_of(tmp_path, teacher_control=control, teacher_cache=cache))))
            for cache in (None, tmp_path / "cache")
        )
        wanted = plain(images, (2, 2)).map
        assert [torch.equal(cached(images, (2, 2)).map, wanted) for _ in range(2)] == [True, True]
        assert cached.cache is not None
        assert cached.cache.hits >= len(images)
    for seed in (0, 1):
        recipe = recipe_of(
            tmp_path, teacher="dinov2_vits14", teacher_control="random", teacher_cache=tmp_path / "cache", seed=seed
        )
        (drawn,) = build_teachers(recipe)
        drawn(images, (4, 4))
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "dinov2_vits14-random-0",
        "dinov2_vits14-random-1",
        "tiny",
        "tiny-shuffled",
    ]
