"""Write a run's report.html anew from the files in its folder.

python -m detectors.training.report runs/train
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import CliPositionalArg

from detectors.command_line import parse_options, plain_console
from vfmdistill.errors import DistillError

from .report_page import write_report


class Options(BaseModel):
    """The command line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: CliPositionalArg[Path] = Field(description="output folder of a training run")


def main(arguments: Sequence[str] | None = None) -> Path:
    """Do what the command line asks for."""
    options = parse_options(
        Options, arguments, program="python -m detectors.training.report", description="Write a run's report.html anew."
    )
    path = write_report(options.folder)
    plain_console().print(str(path), soft_wrap=True)
    return path


if __name__ == "__main__":
    try:
        main()
    except DistillError as error:
        raise SystemExit(f"error: {error}") from None
