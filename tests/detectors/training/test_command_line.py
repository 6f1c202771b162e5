from pathlib import Path

import pytest

from detectors.training.command_line import parse_recipe
from detectors.training.recipe import Recipe
from vfmdistill.errors import InputError, UnknownNameError

DEMO = {"model": "rtdetrv4_n", "epochs": 3}


def parse(*arguments: str, demo: dict[str, object] | None = DEMO) -> Recipe:
    return parse_recipe(arguments, program="train", description="Train.", demo=demo)


def test_without_data_the_demo_settings_hold_and_options_win() -> None:
    recipe = parse("--epochs", "5")
    assert (recipe.model, recipe.epochs, recipe.data) == ("rtdetrv4_n", 5, None)


def test_with_data_the_published_recipe_holds() -> None:
    recipe = parse("--data", "cards")
    assert (recipe.model, recipe.epochs, recipe.teacher) == ("rtdetrv4_s", 132, "dinov3_vitb16")


def test_the_models_own_published_values_are_kept() -> None:
    assert parse("--data", "x", "--model", "rtdetrv4_x").backbone_learning_rate == 5e-6


def test_option_that_only_fits_another_models_row() -> None:
    assert parse("--data", "x", "--model", "rtdetrv4_m", "--rho", "0.5").rho == 0.5  # δ of M is 0.25, of S it is 1


def test_file_is_read_and_options_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: cards\nepochs: 7\ninput_size: [320, 480]\nrho: auto\n")
    recipe = parse("--config", str(file), "--epochs", "8")
    assert (recipe.data, recipe.epochs, recipe.input_size, recipe.rho) == (Path("cards"), 8, (320, 480), "auto")


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("epoch: 7\n", UnknownNameError, "epochs"),
        ("- 1\n", InputError, "list"),
        ("a: [\n", InputError, "not valid YAML"),
        ("epochs: many\n", InputError, "epochs"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(error, match=words):
        parse("--config", str(file))


def test_missing_file_and_missing_data() -> None:
    with pytest.raises(InputError, match="cannot read the settings"):
        parse("--config", "nowhere.yaml")
    with pytest.raises(InputError, match="--data"):
        parse(demo=None)


def test_environment_does_not_change_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEED", "5")
    monkeypatch.setenv("EPOCHS", "9")
    assert (parse().seed, parse().epochs) == (0, 3)


def test_help_lists_every_setting_and_unknown_options_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in Recipe.model_fields:
        assert f"--{name.replace('_', '-')}" in text
    with pytest.raises(SystemExit) as stopped:
        parse("--epoch", "3")
    assert stopped.value.code == 2
    assert "--epoch" in capsys.readouterr().err


def test_wrong_value_is_one_clear_error() -> None:
    with pytest.raises(InputError, match=r"images of 321 × 321: .* that work: 320 × 320 and 352"):
        parse("--input-size", "321")


def test_dumped_recipe_gives_the_same_run(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    options = ("--data", "cards", "--model", "deim_m", "--epochs", "60", "--multi-scale", "null", "--rho", "auto")
    with pytest.raises(SystemExit) as stopped:
        parse(*options, "--dump-recipe", str(file))
    assert stopped.value.code == 0
    dumped = parse("--config", str(file))
    assert dumped == parse(*options)
    assert (dumped.multi_scale, dumped.stages) == (None, (2, 29, 29, 53))
    assert "augmented_from 2, dense_until 29" in file.read_text()


def test_dump_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write the recipe"):
        parse("--dump-recipe", str(tmp_path / "nowhere" / "recipe.yaml"))
