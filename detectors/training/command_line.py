"""The command line of a training run: every field of the recipe as an option, and a YAML file for many at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import CliApp, SettingsConfigDict

from detectors.command_line import CommandLine
from vfmdistill.errors import InputError, unknown_name

from .recipe import Recipe, recipe_for, sentences


def parse_recipe(
    arguments: Sequence[str] | None = None, *, program: str, description: str, demo: dict[str, Any] | None = None
) -> Recipe:
    """Return the recipe that the command line asks for.

    Later ones win: the model's published recipe, the `demo` settings (only where neither the options nor the file name
    any data), the file of --config, the options.

    Args:
        arguments: the words after the program's name; None takes them from the process.
        program: name that --help shows.
        description: what the program does, for --help.
        demo: recipe fields for a run without data; None makes --data obligatory.

    Raises:
        SystemExit: after --help and --dump-recipe, or for a wrong option (status 2, message on standard error).
        InputError: a setting does not fit, or no data was named where there is no demonstration.
        UnknownNameError: the file has a key that is no setting, or there is no such model.
    """
    given = _given_options(list(sys.argv[1:] if arguments is None else arguments), program, description)
    dump = given.pop("dump_recipe", None)
    settings = {**read_settings(given.pop("config", None)), **given}
    if settings.get("data") is None:
        if demo is None:
            raise InputError("no data given: name the folder of a data set with --data")
        settings = {**demo, **settings}
    recipe = recipe_for(settings.pop("model", "rtdetrv4_s"), **settings)
    if dump is not None:
        write_recipe(recipe, dump)
        raise SystemExit(0)
    return recipe


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write every setting of a run as YAML, for --config.

    Raises:
        InputError: the file cannot be written.
    """
    import yaml

    settings = {name: value for name, value in recipe.model_dump(mode="json").items() if name != "resume"}
    stages = ", ".join(f"{name} {epoch}" for name, epoch in recipe.stages._asdict().items())
    text = f"# null: derived from `epochs` or taken from the model. Stages of this run: {stages}\n"
    try:
        path.write_text(text + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the recipe {path}: {error.strerror}") from None


def _given_options(arguments: list[str], program: str, description: str) -> dict[str, Any]:
    """Return the options that were given, without anything that was not."""

    class Options(Recipe, CommandLine):
        """The recipe as a command line."""

        model_config = SettingsConfigDict(cli_prog_name=program, cli_parse_none_str="null")
        config: Path | None = Field(None, description="YAML file with any of these settings; options win over it")
        dump_recipe: Path | None = Field(None, description="write all settings to this YAML file, and do nothing else")

        @model_validator(mode="after")
        def _consistent(self) -> Options:
            return self  # only the finished recipe can be judged: what is not given here comes from the model's row

    Options.__doc__ = f"{description} Defaults are those of rtdetrv4_s; another --model brings its own published ones."
    try:
        return CliApp.run(Options, cli_args=arguments).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise InputError(sentences(error)) from None


def read_settings(path: Path | None) -> dict[str, Any]:
    """Return the settings of a YAML file, nothing without one.

    Raises:
        InputError: the file cannot be read, or holds something else.
        UnknownNameError: a key is no setting.
    """
    import yaml

    if path is None:
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the settings {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise InputError(f"{path} must hold `setting: value` lines, got {type(settings).__name__}")
    for key in settings:
        if key not in Recipe.model_fields:
            raise unknown_name(f"setting in {path}:", str(key), Recipe.model_fields)
    return settings
