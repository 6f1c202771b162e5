"""Which arms a grid has, what each is compared with, and what cannot be meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detectors.ablation.arms import Arm
from detectors.ablation.grid import Grid, check_arm, folder_of, parse_vary
from detectors.training.recipe import Recipe, recipe_for
from vfmdistill.errors import InputError, UnknownNameError

LITE, DINO = "efficientnet_lite0", "dinov2_vits14"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return recipe_for("deim_n", data=Path("cards"), distill_weight=20.0)


def named(arms: list[Arm]) -> dict[str, Arm]:
    assert len({arm.name for arm in arms}) == len(arms)
    return {arm.name: arm for arm in arms}


def test_teachers_times_components_and_controls(recipe: Recipe) -> None:
    grid = Grid(teachers=(LITE, DINO), files={DINO: Path("dino.pth")}, controls=(f"random:{DINO}", f"shuffled:{LITE}"))
    arms = named(grid.arms(recipe))
    assert list(arms) == [
        "off", f"{LITE}+fixed", f"{LITE}+gam", f"{DINO}+fixed", f"{DINO}+gam", f"random:{DINO}+gam",
        f"shuffled:{LITE}+gam",
    ]  # fmt: skip
    assert [arm.kind for arm in arms.values()] == ["off", *["method"] * 4, *["control"] * 2]
    assert {arm.baseline for name, arm in arms.items() if name != "off"} == {"off"}
    assert arms[f"random:{DINO}+gam"].control_of == f"{DINO}+gam"
    assert arms[f"shuffled:{LITE}+gam"].control_of == f"{LITE}+gam"
    recipes = {name: check_arm(recipe, arm) for name, arm in arms.items()}
    assert recipes["off"].teachers == {}
    assert (recipes[f"{LITE}+fixed"].rho, recipes[f"{LITE}+fixed"].distill_weight) == ("fixed", 20.0)
    assert recipes[f"{DINO}+gam"].teacher_weights == Path("dino.pth")
    assert recipes[f"random:{DINO}+gam"].teacher_weights is None
    assert recipes[f"random:{DINO}+gam"].teacher_control == "random"
    assert recipes[f"shuffled:{LITE}+gam"].teacher_control == "shuffled"


@pytest.mark.parametrize(("given", "expected"), [(11.0, 11.0), ("auto", "auto"), ("fixed", "auto")])
def test_gam_takes_the_window_of_the_recipe(given: Any, expected: Any) -> None:
    recipe = recipe_for("deim_n", data=Path("cards"), rho=given)
    arms = named(Grid(teachers=(LITE,)).arms(recipe))
    assert check_arm(recipe, arms[f"{LITE}+gam"]).rho == expected
    assert check_arm(recipe, arms[f"{LITE}+fixed"]).rho == "fixed"


def test_what_only_concerns_the_teaching_leaves_one_arm_without_a_teacher(recipe: Recipe) -> None:
    grid = Grid(teachers=(LITE,), components=("off", "gam"), vary={"projector": ("linear", "mlp")})
    arms = named(grid.arms(recipe))
    assert list(arms) == ["off", f"{LITE}+gam,projector=linear", f"{LITE}+gam,projector=mlp"]
    assert {arm.baseline for arm in list(arms.values())[1:]} == {"off"}


def test_what_concerns_the_student_has_a_baseline_for_every_value(recipe: Recipe) -> None:
    vary = {"learning_rate": (1e-3, 2e-3), "objective": ("cosine", "mse")}
    grid = Grid(teachers=(LITE,), components=("off", "gam"), vary=vary, controls=(f"shuffled:{LITE}",))
    arms = named(grid.arms(recipe))
    baselines = [name for name, arm in arms.items() if arm.kind == "off"]
    assert baselines == ["off,learning_rate=0.001", "off,learning_rate=0.002"]
    for arm in arms.values():
        if arm.baseline is not None:
            rates = (check_arm(recipe, some).learning_rate for some in (arm, arms[arm.baseline]))
            assert len(set(rates)) == 1
        if arm.kind == "control":
            assert arm.control_of is not None
            other = arms[arm.control_of].settings
            assert {**other, "teacher_control": "shuffled"} == arm.settings
    assert len(arms) == 2 + 2 * 4


def test_fields_of_gam_leave_arms_with_a_fixed_weight_as_they_are(recipe: Recipe) -> None:
    arms = named(Grid(teachers=(LITE,), vary={"rho": ("auto", 11.0)}).arms(recipe))
    assert list(arms) == ["off", f"{LITE}+fixed", f"{LITE}+gam,rho=auto", f"{LITE}+gam,rho=11.0"]
    assert check_arm(recipe, arms[f"{LITE}+gam,rho=11.0"]).rho == 11.0
    assert check_arm(recipe, arms[f"{LITE}+fixed"]).rho == "fixed"


def test_controls_have_the_component_that_they_stand_beside(recipe: Recipe) -> None:
    arms = named(Grid(teachers=(LITE,), components=("off", "fixed"), controls=(f"shuffled:{LITE}",)).arms(recipe))
    control = arms[f"shuffled:{LITE}+fixed"]
    assert control.control_of == f"{LITE}+fixed"
    assert check_arm(recipe, control).rho == "fixed"


def test_names_are_those_that_the_command_line_takes(recipe: Recipe) -> None:
    vary = parse_vary(["multi_scale=20,null", "teacher_blocks=[1,2]"])
    grid = Grid(
        teachers=(DINO,),
        components=("off", "gam"),
        vary=vary,
        skip=(f"{DINO}+gam,multi_scale=20,teacher_blocks=[1, 2]",),
    )
    assert list(named(grid.arms(recipe))) == [
        "off,multi_scale=20", "off,multi_scale=null", f"{DINO}+gam,multi_scale=null,teacher_blocks=[1, 2]",
    ]  # fmt: skip


def test_arms_can_be_left_out(recipe: Recipe) -> None:
    grid = Grid(teachers=(LITE,), controls=(f"shuffled:{LITE}",), skip=(f"{LITE}+gam",))
    arms = named(grid.arms(recipe))
    assert list(arms) == ["off", f"{LITE}+fixed", f"shuffled:{LITE}+gam"]
    assert arms[f"shuffled:{LITE}+gam"].control_of is None
    with pytest.raises(InputError, match="off cannot be skipped"):
        Grid(teachers=(LITE,), skip=("off",)).arms(recipe)
    with pytest.raises(UnknownNameError, match="arm to skip 'gam'"):
        Grid(teachers=(LITE,), skip=("gam",)).arms(recipe)


def test_a_control_may_stand_alone(recipe: Recipe) -> None:
    arms = named(Grid(controls=(f"random:{DINO}",)).arms(recipe))
    assert arms[f"random:{DINO}+gam"].control_of is None


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"teachers": (LITE,), "components": ("gam",)}, "add 'off'"),
        ({"components": ("off",), "teachers": (LITE,)}, "nothing to compare with 'off'"),
        ({"teachers": (LITE, LITE)}, "is there twice"),
        ({"teachers": (LITE,), "files": {DINO: Path("x")}}, "weights for dinov2_vits14, which is no teacher"),
        ({"teachers": (LITE,), "controls": ("noise:x",)}, "control 'noise:x'; expected random:TEACHER or shuffled"),
        ({"teachers": (LITE,), "controls": ("random:",)}, "control 'random:'"),
        ({"teachers": (LITE,), "vary": {"projector": ("linear", "square")}}, "projector=square: projector: .*'square'"),
        ({"teachers": (LITE,), "vary": {"distill_weight": (5, 5.0)}}, "distill_weight=5 and .*=5.0 are one"),
        ({"teachers": (LITE,), "vary": {"rho": ("auto", "fixed")}}, "vary rho: 'fixed' is a component"),
        ({"teachers": ("a:b", "a_b"), "components": ("off", "gam")}, "have the same folder"),
    ],
)
def test_what_cannot_be_meant(recipe: Recipe, grid: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grid(**grid).arms(recipe)


def test_values_on_the_command_line() -> None:
    assert parse_vary(["injector.projector=linear,mlp", "distill-weight=1,5.5", "augment=true,false"]) == {
        "projector": ("linear", "mlp"),
        "distill_weight": (1, 5.5),
        "augment": (True, False),
    }
    assert parse_vary(["teacher_blocks=[1,2],[3],null", "rho=auto,11", "multi_scale=null"]) == {
        "teacher_blocks": ([1, 2], [3], None),
        "rho": ("auto", 11),
        "multi_scale": (None,),
    }


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        (["projector"], InputError, "vary 'projector'; expected FIELD=VALUE,VALUE"),
        (["projector="], InputError, "expected FIELD=VALUE,VALUE"),
        (["projector=linear,"], InputError, "expected FIELD=VALUE,VALUE"),
        (["workers=1,2"], InputError, "vary workers: that is what the grid itself sets"),
        (["=1"], InputError, "expected FIELD=VALUE,VALUE"),
        (["projectr=linear"], UnknownNameError, "projector"),
        (["seed=1,2"], InputError, "vary seed: that is what the grid itself sets"),
        (["teacher=a,b"], InputError, "use --teachers"),
        (["rho=1", "rho=2"], InputError, "given twice"),
    ],
)
def test_values_that_cannot_be_meant(texts: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_vary(texts)


def test_folders_hold_no_character_that_a_file_system_minds() -> None:
    assert folder_of("shuffled:hf:owner/name+gam,projector=mlp", 3) == Path(
        "shuffled_hf_owner_name+gam,projector=mlp/seed_3"
    )
