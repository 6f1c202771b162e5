"""What the words of the command line ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from detectors.ablation.command_line import Asked, command_of, parse_ablation
from vfmdistill.errors import InputError, UnknownNameError


def parse(*words: str) -> Asked:
    return parse_ablation(["--data", "cards", *words], program="ablate_teachers.py", description="It compares.")


def test_settings_of_the_recipe_are_options_and_its_own_are_not_mixed_up() -> None:
    asked = parse(
        "--model", "deim_n", "--teachers", "efficientnet_lite0,dinov2_vits14", "--teacher-weights",
        "dinov2_vits14=d=ino.pth", "--controls", "shuffled:efficientnet_lite0", "--seeds", "3", "--first-seed", "10",
        "--workers", "2", "--loading-workers", "4", "--epochs", "30", "--no-augment", "--multi-scale", "null",
        "--rho", "auto", "--vary", "injector.projector=linear,mlp", "--components", "off,gam", "--note", "A, b.",
        "--output", "runs/here",
    )  # fmt: skip
    assert asked.seeds == [10, 11, 12]
    assert (asked.options.workers, asked.recipe.workers) == (2, 4)
    assert asked.storage == f"sqlite:///{Path('runs/here/study.db')}"
    assert (asked.recipe.model, asked.recipe.epochs, asked.recipe.augment, asked.recipe.multi_scale) == (
        "deim_n", 30, False, None,
    )  # fmt: skip
    assert (asked.recipe.dry_run, asked.recipe.resume, asked.recipe.data) == (False, False, Path("cards"))
    assert asked.grid.teachers == ("efficientnet_lite0", "dinov2_vits14")
    assert asked.grid.files == {"dinov2_vits14": Path("d=ino.pth")}
    assert asked.grid.components == ("off", "gam")
    assert asked.grid.controls == ("shuffled:efficientnet_lite0",)
    assert asked.grid.vary == {"projector": ("linear", "mlp")}
    assert len(asked.grid.arms(asked.recipe)) == 1 + 2 * 2 + 2
    assert asked.options.note == ["A, b."]


def test_values_with_commas_arrive_whole() -> None:
    asked = parse(
        "--teachers", "dinov2_vits14", "--vary", "compile=false,true", "--vary=teacher_blocks=[1,2],[3]",
        "--vary", "multi_scale=20,null", "--skip", "a+fixed,compile=true", "--skip=b",
    )  # fmt: skip
    assert asked.grid.vary == {"compile": (False, True), "teacher_blocks": ([1, 2], [3]), "multi_scale": (20, None)}
    assert asked.grid.skip == ("a+fixed,compile=true", "b")


def test_the_published_recipe_of_the_model_stands_behind_the_options() -> None:
    from detectors.training.recipe import recipe_for

    published, asked = (
        recipe_for("dfine_n", data=Path("cards")),
        parse("--model", "dfine_n", "--teachers", "dinov2_vits14", "--batch-size", "4"),
    )
    assert asked.recipe.epochs == published.epochs
    assert asked.recipe.learning_rate == published.learning_rate
    assert (published.batch_size, asked.recipe.batch_size) != (4, published.batch_size)


def test_a_recipe_in_a_file_and_options_over_it(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model: deim_n\nepochs: 7\nworkers: 9\nseed: 5\nteacher: dinov2_vits14\nteacher_weights: x.pth\n")
    asked = parse("--config", str(file), "--epochs", "8")
    assert (asked.recipe.model, asked.recipe.epochs, asked.recipe.workers) == ("deim_n", 8, 0)
    assert asked.grid.teachers == ("dinov2_vits14",)
    assert asked.grid.files == {"dinov2_vits14": Path("x.pth")}
    assert asked.seeds == [0, 1, 2, 3, 4]


def test_controls_do_not_drop_the_teacher_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("model: deim_n\nteacher: dinov2_vits14\n")
    asked = parse("--config", str(file), "--controls", "shuffled:dinov2_vits14")
    assert asked.grid.teachers == ("dinov2_vits14",)
    assert parse("--model", "deim_n", "--controls", "random:dinov2_vits14").grid.teachers == ()


def test_the_command_in_the_report_begins_the_study_and_tells_no_password() -> None:
    url = "postgresql://user:secret@host/name"
    words = ["--data", "my cards", "--storage", url, "--resume", "--seeds", "3"]
    shown = "postgresql://user:***@host/name"
    assert command_of(words, "ablate.py") == f"python ablate.py --data 'my cards' --storage '{shown}' --seeds 3"
    assert command_of([f"--storage={url}"], "ablate.py") == f"python ablate.py '--storage={shown}'"
    assert command_of(["--storage", "sqlite:///a@b.db"], "x") == "python x --storage sqlite:///a@b.db"


def test_a_folder_that_no_url_can_hold() -> None:
    with pytest.raises(InputError, match="URL ends at"):
        parse("--output", "runs/what?").storage  # noqa: B018


def test_several_teachers_at_once_are_one_arm() -> None:
    asked = parse("--teachers", "dinov2_vits14=2+efficientnet_lite0=1", "--components", "off,gam")
    (off, arm) = asked.grid.arms(asked.recipe)
    assert off.kind == "off"
    assert arm.settings["teacher"] == "dinov2_vits14=2,efficientnet_lite0=1"


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--teacher-weights", "x.pth"], InputError, "teacher weights 'x.pth'; expected TEACHER=FILE"),
        (["--model", "deim_n"], InputError, "deim_n has no teacher of its own: name some by --teachers"),
        (["--first-seed", "3000000000"], InputError, "--first-seed: .*less than"),
        (["--seeds", "0"], InputError, "--seeds: .*greater than or equal to 1"),
        (["--components", "off,dsi"], InputError, "--components.*'dsi'"),
        (["--model", "deim_q"], UnknownNameError, "unknown model 'deim_q'"),
        (["--vary", "projectr=linear,mlp"], UnknownNameError, "unknown recipe field 'projectr'"),
    ],
)
def test_what_does_not_fit_is_said(words: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse(*words)


@pytest.mark.parametrize("word", ["--resum", "--seed", "--teacher"])
def test_unknown_options_end_it(word: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(word, "3")
    assert ended.value.code == 2


def test_help_names_the_options_of_both(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse("--help")
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("--teachers", "--controls", "--storage", "--distill-weight", "--input-size"))
