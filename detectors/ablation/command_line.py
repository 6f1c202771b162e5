"""The command line of an ablation: what it varies, where its runs are shared out, and any setting of the recipe."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, create_model

from detectors.command_line import parse_options
from detectors.training.command_line import read_settings
from detectors.training.recipe import Recipe, recipe_for
from vfmdistill.errors import InputError

from .grid import Component, Grid, parse_vary

# Settings of a run that are the ablation's to choose; its own options may bear their names.
_NOT_SHARED = (
    "data", "output", "resume", "seed", "teacher", "teacher_weights", "teacher_control", "workers", "dry_run",
)  # fmt: skip
# Options whose values may hold commas; each is given as often as there are values.
_WITH_COMMAS = ("--vary", "--skip", "--note")


class AblationOptions(BaseModel):
    """The options that a training run does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    data: Path = Field(description="folder of the data set")
    output: Path = Field(Path("runs/ablation"), description="folder that receives the runs and the report")
    config: Path | None = Field(None, description="YAML file with settings of the recipe; options win over it")
    teachers: list[str] = Field([], description="teachers, each an arm; TEACHER=2+TEACHER=1 is several at once")
    teacher_weights: list[str] = Field([], description="TEACHER=FILE: local weights")
    components: list[Component] = Field(
        ["off", "fixed", "gam"], description="off: no teacher; fixed: DSI with a fixed λ; gam: DSI with GAM"
    )
    controls: list[str] = Field([], description="random:TEACHER, shuffled:TEACHER: teachers that must not help")
    vary: list[str] = Field([], description="FIELD=VALUE,VALUE: any field of the recipe, projector=linear,mlp")
    skip: list[str] = Field([], description="an arm to leave out, by the name that --dry-run shows; again for another")
    seeds: int = Field(5, ge=1, le=100_000, description="runs of every arm, each with a seed of its own")
    first_seed: int = Field(0, ge=0, lt=2**31 - 100_000, description="the first of them")
    study: str = Field("ablation", description="name of the study in the storage")
    storage: str | None = Field(
        None, description="sqlite:///FILE, or postgresql://… for many machines; None: study.db in the output folder"
    )
    workers: int = Field(1, ge=1, description="runs at a time on this machine")
    resume: bool = Field(False, description="go on with the study, or join its workers")
    dry_run: bool = Field(False, description="show what would be run, with an estimate of the time, and do nothing")
    heartbeat: int = Field(30, ge=1, description="seconds between signs of life; after three, a run is taken for dead")
    keep_all_checkpoints: bool = Field(False, description="finished runs keep theirs, besides the trained detector")
    loading_workers: int = Field(0, ge=0, description="data-loading processes of each run")
    reference: str | None = Field(None, description="arm whose pictures stand beside 'off'; None: the best method")
    note: list[str] = Field([], description="a sentence for the report")


class Asked(NamedTuple):
    """What the command line asks for."""

    options: AblationOptions
    recipe: Recipe
    grid: Grid

    @property
    def seeds(self) -> list[int]:
        """Of the runs of every arm."""
        return list(range(self.options.first_seed, self.options.first_seed + self.options.seeds))

    @property
    def storage(self) -> str:
        """URL of the storage.

        Raises:
            InputError: the name of the output folder cannot stand in one.
        """
        if self.options.storage is None and "?" in str(self.options.output):
            raise InputError(f"output {self.options.output}: a storage's URL ends at '?'; take another name.")
        return self.options.storage or f"sqlite:///{self.options.output / 'study.db'}"


def parse_ablation(arguments: Sequence[str] | None = None, *, program: str, description: str) -> Asked:
    """Return what the command line asks for.

    Later ones win: the model's published recipe, the file of --config, the options.

    Args:
        arguments: the words after the program's name; None takes them from the process.
        program: name that --help shows.
        description: what the program does, for --help.

    Raises:
        SystemExit: after --help, or for a wrong option (status 2, message on standard error).
        InputError: a setting does not fit, or settings do not go together.
        UnknownNameError: there is no such model or field.
    """
    shared: dict[str, Any] = {
        name: (field.annotation, field) for name, field in Recipe.model_fields.items() if name not in _NOT_SHARED
    }
    model = create_model("Options", __base__=AblationOptions, **shared)
    words = _whole(sys.argv[1:] if arguments is None else arguments)
    parsed = parse_options(model, words, program=program, description=description, none="null")
    given = parsed.model_dump(exclude_unset=True)
    own = AblationOptions.model_validate({key: value for key, value in given.items() if key not in shared})
    settings = read_settings(own.config)
    teacher, files = settings.get("teacher"), [*own.teacher_weights]
    if settings.get("teacher_weights") is not None and not own.teachers:
        files.append(f"{teacher}={settings['teacher_weights']}")
    fixed = {key: value for key, value in settings.items() if key not in _NOT_SHARED}
    fixed |= {key: value for key, value in given.items() if key in shared}
    name = fixed.pop("model", "rtdetrv4_s")
    recipe = recipe_for(name, **fixed, data=own.data, output=own.output, workers=own.loading_workers, dry_run=False)
    teachers = own.teachers or ([str(teacher)] if teacher else [])
    if not teachers and not own.controls:
        if recipe.teacher is None:
            raise InputError(f"{name} has no teacher of its own: name some by --teachers, or controls by --controls.")
        teachers = [recipe.teacher]
    grid = Grid(
        teachers=tuple(name.replace("+", ",") for name in teachers),
        files=dict(_file(text) for text in files),
        components=tuple(own.components),
        controls=tuple(own.controls),
        vary=parse_vary(own.vary),
        skip=tuple(own.skip),
    )
    return Asked(own, recipe, grid)


def command_of(arguments: Sequence[str] | None, program: str) -> str:
    """Return the command line for the report: what begins the study, without a password."""
    words = ["python", program]
    for word in sys.argv[1:] if arguments is None else arguments:
        if word == "--resume":
            continue
        option, equals, value = word.partition("=")
        if option == "--storage" and equals:
            word = f"--storage={_without_password(value)}"
        words.append(_without_password(word) if words[-1] == "--storage" else word)
    return shlex.join(words)


def _without_password(url: str) -> str:
    return re.sub(r"(://[^/@:]*):[^@]*@", r"\1:***@", url)


def _whole(words: Sequence[str]) -> list[str]:
    """Write the values of options that may hold commas as JSON, so that they are not taken apart there."""
    whole: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if equals and option in _WITH_COMMAS:
            word = f"{option}={json.dumps([value])}"
        elif whole and whole[-1] in _WITH_COMMAS:
            word = json.dumps([word])
        whole.append(word)
    return whole


def _file(text: str) -> tuple[str, Path]:
    name, equals, file = text.partition("=")
    if not equals or not name or not file:
        raise InputError(f"teacher weights {text!r}; expected TEACHER=FILE.")
    return name, Path(file)
