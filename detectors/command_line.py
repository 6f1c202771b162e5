"""Command lines of the programs that use a finished detector: options, its predictor, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, CliApp, PydanticBaseSettingsSource, SettingsConfigDict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from detectors.input_size import InputSize
from detectors.opening import locate_detector
from detectors.predictor import Precision, Predictor
from vfmdistill.errors import InputError

T = TypeVar("T")
Options = TypeVar("Options", bound=BaseModel)


class PredictorOptions(BaseModel):
    """The options of every program that uses a finished detector."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: Path = Field(
        description="the detector: a folder of save_pretrained, a checkpoint of a run, or a run's output folder"
    )
    device: str = Field("auto", description="'cpu', 'cuda', 'cuda:1' …; 'auto' takes the GPU if there is one")
    precision: Precision = Field("fp32", description="of the network's forward pass")
    input_size: InputSize | None = Field(
        None, description="height,width that pictures are resized to; one number for a square; None: the detector's own"
    )
    batch_size: int = Field(8, ge=1, description="pictures that are looked at together")
    top_k: int = Field(300, ge=1, description="most detections in a picture")

    @property
    def weights(self) -> Path:
        """The folder with the weights that `model` stands for."""
        return locate_detector(self.model)

    def open(self, threshold: float) -> Predictor:
        """Return the predictor that the options ask for."""
        return Predictor(
            self.weights,
            device=None if self.device == "auto" else self.device,
            input_size=self.input_size,
            threshold=threshold,
            top_k=self.top_k,
            batch_size=self.batch_size,
            precision=self.precision,
        )


def plain_console() -> Console:
    """Return a console that prints what it is given, brackets and colons too, in lines of 120 where it is a file."""
    return Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False, highlight=False)


def track(items: Iterable[T], title: str, console: Console, total: int | None = None) -> Iterator[T]:
    """Yield the items under a progress bar, where there is a terminal to show it on; `total` None: not known."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total, description=title)


def parse_options(
    options: type[Options],
    arguments: Sequence[str] | None = None,
    *,
    program: str,
    description: str,
    none: str | None = None,
) -> Options:
    """Return the options that the command line asks for.

    Args:
        options: a model with a field for each option; its descriptions are the help. A field without a default is
            obligatory, and one that is annotated with `CliPositionalArg` has no name on the command line.
        arguments: the words after the program's name; None takes them from the process.
        program: name that --help shows.
        description: what the program does, for --help.
        none: word that stands for None, where options can be given that.

    Raises:
        SystemExit: after --help, or for an unknown or missing option (status 2, message on standard error).
        InputError: a value does not fit; the message names every such option.
    """
    command_line = create_model(
        "CommandLine",
        __base__=(options, CommandLine),
        __doc__=description,
        __cls_kwargs__={"cli_prog_name": program, "cli_parse_none_str": none},
    )
    try:
        parsed: Any = CliApp.run(command_line, cli_args=list(sys.argv[1:] if arguments is None else arguments))
    except ValidationError as error:
        raise InputError("; ".join(_sentence(item) for item in error.errors())) from None
    return cast(Options, parsed)


class CommandLine(BaseSettings):
    """Settings that come from the words of the command line alone, --written-like-this."""

    model_config = SettingsConfigDict(
        cli_kebab_case=True, cli_implicit_flags=True, cli_hide_none_type=True, cli_avoid_json=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return ()  # a variable of the environment called MODEL or DATA must not change what a program does


def _sentence(fault: ErrorDetails) -> str:
    """Say which option is wrong, in what, and what was given."""
    message = fault["msg"].removeprefix("Value error, ")
    if not fault["loc"]:
        return message
    option = f"--{str(fault['loc'][0]).replace('_', '-')}"
    return f"{option} is missing" if fault["type"] == "missing" else f"{option}: {message} (given: {fault['input']!r})"
